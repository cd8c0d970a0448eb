"""What a run says of itself: events, the progress line, the summary."""
