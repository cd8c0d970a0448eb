"""What a real run leaves for those who look at it: the report in a browser, TensorBoard, status."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distbelief import cli

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
BROWSER_S = 25
SIZE = (1200, 1600)

PROBE = """
<script>
window.addEventListener("load", () => {
  const found = { errors: window.errors, sizes: [], tips: [] };
  for (const svg of document.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect();
    found.sizes.push([box.width, box.height]);
  }
  for (const figure of document.querySelectorAll("figure[data-plot]")) {
    const box = figure.querySelector("svg").getBoundingClientRect();
    const at = { clientX: box.left + 0.6 * box.width, clientY: box.top + 0.5 * box.height };
    figure.querySelector("svg").dispatchEvent(new PointerEvent("pointermove", at));
    const tip = figure.querySelector(".tip");
    found.tips.push(tip.hidden ? "" : tip.innerText);
  }
  const button = document.querySelector("button[data-run='0']");
  button.click();
  found.pressed = button.getAttribute("aria-pressed");
  found.shown = [0, 1].map((run) => [...document.querySelectorAll(".run.run-" + run)]
    .filter((part) => part.style.display !== "none").length);
  found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.body.dataset.found = JSON.stringify(found);
});
</script>
"""
LISTEN = """
<script>
window.errors = [];
window.onerror = (text) => { window.errors.push(String(text)); };
</script>
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two short runs of different rates."""
    root = tmp_path_factory.mktemp("runs")
    made = []
    for name, lr in (("slow", "0.005"), ("fast", "0.02")):
        options = ["--address", "inprocess", "--epochs", "2", "--drawn-train", "192"]
        options += ["--drawn-val", "64", "--lr", lr, "--run-dir", str(root / name), "--no-live"]
        assert cli.main(["train", *options]) == 0
        made.append(root / name)
    return made


@pytest.fixture(scope="module")
def report(folders: list[Path]) -> Path:
    path = folders[0].parent / "report.html"
    assert cli.main(["report", *map(str, folders), "--output", str(path)]) == 0
    return path


def browse(page: Path, *options: str) -> str:
    """What a browser prints when it opens the page."""
    if BROWSER is None:
        pytest.skip("neither chromium nor chrome is installed")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--disable-dev-shm-usage", f"--user-data-dir={page.parent / 'profile'}"]
    command += [f"--window-size={SIZE[0]},{SIZE[1]}", *options, page.as_uri()]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=BROWSER_S, check=True, cwd=page.parent
    )
    return done.stdout


def test_the_page_as_a_browser_shows_it(report: Path) -> None:
    text = report.read_text()
    assert re.findall(r"https?://|(?:src|href)=", text) == []
    picture = report.with_suffix(".png")
    dom = browse(report, f"--screenshot={picture}", "--dump-dom")
    # The last thing that the page's script does, under the page's own policy.
    assert 'data-ready="yes"' in dom
    with Image.open(picture) as image:
        assert image.size == SIZE
        colours = image.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    (most, _), *others = sorted(colours, reverse=True)
    assert most < 0.97 * SIZE[0] * SIZE[1]
    assert len(others) > 50


def test_plots_have_a_size_and_tell_their_values(report: Path) -> None:
    # The probe is not of the page, so that the page's policy must go for it.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', LISTEN, report.read_text())
    probed = report.with_name("probed.html")
    probed.write_text(text.replace("</body>", PROBE + "</body>"))
    written = re.search(r'data-found="([^"]*)"', browse(probed, "--dump-dom"))
    assert written is not None
    found: dict[str, Any] = json.loads(html.unescape(written[1]))
    assert found["errors"] == []
    assert len(found["sizes"]) == text.count("<svg")
    assert all(width > 200 and height > 80 for width, height in found["sizes"])
    assert len(found["tips"]) >= 7
    assert all("slow" in tip and "fast" in tip for tip in found["tips"])
    assert (found["pressed"], found["shown"][0]) == ("false", 0)
    assert found["shown"][1] > 10
    assert found["wide"] <= 0  # nothing to scroll sideways


def test_tensorboard_reads_what_a_run_has_written(folders: list[Path]) -> None:
    found = EventAccumulator(str(folders[0] / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    tags = set(found.Tags()["scalars"])
    assert {"loss/loss", "rate", "images_per_second", "validation/top1"} <= tags
    assert {"shard_0/mb_per_second", "replica_0/images_per_second", "staleness/mean"} <= tags
    assert found.Scalars("examples_applied")[-1].value == 384
    assert found.Scalars("validation/top1")[-1].step == 384
    histograms = found.Tags()["histograms"]
    assert "staleness" in histograms
    assert len([tag for tag in histograms if tag.startswith("weights/")]) == 100
    events = (folders[0] / "events.jsonl").read_text()
    assert "histograms" not in events
    assert "histograms" not in (folders[0] / "summary.json").read_text()


def test_status_of_a_run_that_has_ended(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", str(folders[1]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    summary = json.loads((folders[1] / "summary.json").read_text())
    assert (found["status"], found["examples_applied"]) == ("finished", 384)
    assert found["applied"] == summary["pushes"]["applied"] == sum(found["staleness"].values())
    assert found["validation"]["top1"] == summary["validation"]["top1"]
    assert [m["host"] != "" for m in found["replicas"]] == [True, True]
