"""The replica: the Downpour loop, flat buffers, and the exchange behind the compute."""
