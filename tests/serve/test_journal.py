import os
import signal
import subprocess
import sys

import pytest

from ltrec_jax.errors import UserError
from ltrec_jax.serve.journal import FEEDBACK, IMPRESSION, Journal, JournalError


def test_what_was_written_is_read_in_its_order(tmp_path):
    path = tmp_path / "log.sqlite"
    journal = Journal(path)
    journal.append(FEEDBACK, [{"n": 1}, {"n": 2}])
    journal.note(IMPRESSION, {"n": 3})
    journal.append(FEEDBACK, [{"n": 4}])
    journal.close()
    again = Journal(path)
    assert [event["n"] for _, _, event in again.read(FEEDBACK)] == [1, 2, 4]
    assert sorted(event["n"] for _, _, event in again.read()) == [1, 2, 3, 4]
    assert [kind for kind, at, _ in again.read(IMPRESSION) if at > 0] == [IMPRESSION]
    again.close()
    again.close()


def test_two_writers_are_refused(tmp_path):
    journal = Journal(tmp_path / "log.sqlite")
    with pytest.raises(UserError, match="Another server writes"):
        Journal(tmp_path / "log.sqlite")
    journal.close()
    Journal(tmp_path / "log.sqlite").close()


def test_a_file_that_is_no_log_is_named(tmp_path):
    path = tmp_path / "log.sqlite"
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(JournalError, match=r"log\.sqlite cannot be read"):
        Journal(path)


def test_a_full_disk_keeps_what_was_acknowledged(tmp_path):
    journal = Journal(tmp_path / "log.sqlite")
    journal.append(FEEDBACK, [{"n": 1}])
    # SQLite's own limit on the file stands in for the disk: the error is the same, SQLITE_FULL.
    journal._connection.execute(
        f"PRAGMA max_page_count = {journal._connection.execute('PRAGMA page_count').fetchone()[0]}"
    )
    with pytest.raises(JournalError, match="Free some space"):
        journal.append(FEEDBACK, [{"text": "x" * 100_000}])
    assert [event["n"] for _, _, event in journal.read(FEEDBACK)] == [1]
    journal.close()


def test_acknowledged_events_survive_kill_9(tmp_path):
    program = (
        "import sys; from pathlib import Path; from ltrec_jax.serve.journal import FEEDBACK, Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for n in range(100000):\n"
        "    journal.append(FEEDBACK, [{'n': n}]); print(n, flush=True)\n"
    )
    path = tmp_path / "log.sqlite"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(20)][-1]
        os.kill(process.pid, signal.SIGKILL)
    journal = Journal(path)
    found = [event["n"] for _, _, event in journal.read(FEEDBACK)]
    assert found == list(range(len(found)))
    assert len(found) > acknowledged
    journal.close()
