"""The live line: rate, ETA, how often it is written, and that it never ends the work."""

import io

import pytest

from jaxrope.shell.progress import Progress, duration


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    return Terminal()


def test_rate_and_eta_count_from_where_a_resumed_run_began(clock):
    stream = io.StringIO()
    progress = Progress(1000, unit="steps", start=400, stream=stream, clock=clock)
    clock.now += 10
    progress.update(450, loss=3.14159, best="38.2", tokens=12_345)
    assert stream.getvalue() == (
        "450/1,000 steps  loss 3.142  best 38.2  tokens 12,345  5 steps/s  ETA 1m50s\n"
    )


def test_what_was_done_before_counts_but_not_for_the_rate(clock):
    stream = io.StringIO()
    progress = Progress(1000, unit="tokens", stream=stream, clock=clock)
    clock.now += 10
    progress.update(50)
    progress.skip(400)
    clock.now += 10
    progress.update(500)
    assert stream.getvalue().splitlines()[-1] == "500/1,000 tokens  5 tokens/s  ETA 1m40s"


def test_the_rate_leaves_out_the_first_report_with_its_compilation(clock):
    stream = io.StringIO()
    progress = Progress(100, unit="items", stream=stream, clock=clock)
    clock.now += 50  # of which 45 compile
    progress.update(10)
    clock.now += 5
    progress.update(20)
    clock.now += 5
    progress.update(30)
    progress.close()
    first, last = stream.getvalue().splitlines()
    assert first.endswith("0.2 items/s  ETA 7m30s")
    assert last == "30/100 items  2 items/s  ETA 35s"


def test_the_rate_is_that_of_the_last_minute(clock):
    stream = io.StringIO()
    progress = Progress(0, unit="items", stream=stream, clock=clock)
    clock.now += 600  # the first item took ten minutes: a compilation
    progress.update(1)
    for done in range(2, 102):
        clock.now += 1
        progress.update(done)
    assert stream.getvalue().splitlines()[-1] == "101 items  1 items/s"


def test_without_a_terminal_a_line_is_written_every_interval_and_at_the_end(clock):
    stream = io.StringIO()
    with Progress(100, stream=stream, interval=10, clock=clock) as progress:
        for done in range(1, 26):
            clock.now += 1
            progress.update(done)
    assert [line.split("/")[0] for line in stream.getvalue().splitlines()] == [
        "1",
        "11",
        "21",
        "25",
    ]
    assert "\r" not in stream.getvalue()


def test_a_dumb_terminal_gets_plain_lines(clock, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    progress = Progress(2, stream=terminal, clock=clock)
    clock.now += 1
    progress.update(1)
    progress.close()
    assert terminal.getvalue() == "1/2 steps  1 steps/s  ETA 1s\n"


def test_on_a_terminal_the_line_is_drawn_over_itself(clock, terminal):
    progress = Progress(3, stream=terminal, clock=clock)
    clock.now += 1
    progress.update(1, note="long note")
    clock.now += 1
    progress.update(2)
    progress.close()
    first, second = "1/3 steps  note long note  1 steps/s  ETA 2s", "2/3 steps  1 steps/s  ETA 1s"
    pad = " " * (len(first) - len(second))
    assert terminal.getvalue() == f"\r{first}\r{second}{pad}\n"


def test_a_line_never_wraps(clock, terminal):
    progress = Progress(3, stream=terminal, clock=clock)
    progress.update(1, note="x" * 200)
    assert len(terminal.getvalue().lstrip("\r")) == 59


def test_a_whole_line_goes_above_the_live_one(clock, terminal):
    progress = Progress(3, stream=terminal, clock=clock)
    progress.update(1)
    progress.write("saved")
    assert terminal.getvalue().endswith("\rsaved\n")


def test_a_closed_stream_does_not_end_the_work(clock):
    stream = io.StringIO()
    progress = Progress(3, stream=stream, clock=clock)
    stream.close()
    progress.update(1)
    progress.write("saved")
    progress.close()


def test_no_stream_at_all(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    progress = Progress(3, clock=clock)
    progress.update(1)
    progress.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0s"),
        (59.4, "59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (7500, "2h05m"),
        (90_000, "1d01h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
