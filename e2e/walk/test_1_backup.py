"""vestige-backup in Vestige's image: what a backup holds, what is kept, and what of a failure is seen."""

import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from walking import ROOT, Done, Images, Json, attempt, eventually, run, saw

UPLOAD = (ROOT / "charts" / "vestige" / "files" / "upload.sh").read_text()


@dataclass(frozen=True)
class Container:
    """A container of the image as the chart hardens it, with a small disk and no Vestige."""

    tool: str
    name: str

    def attempt(self, script: str, **variables: str) -> Done:
        environment = [f"--env={name}={value}" for name, value in variables.items()]
        return attempt(self.tool, "exec", *environment, self.name, "bash", "-c", textwrap.dedent(script))

    def run(self, script: str, **variables: str) -> str:
        done = self.attempt(f"set -e\n{textwrap.dedent(script)}", **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def back_up(self, keep: int = 3, **variables: str) -> Done:
        return self.attempt("vestige-backup", BACKUP_KEEP=str(keep), **variables)

    def fails(self, reason: str, script: str = "vestige-backup") -> None:
        """A failure is a sentence and a status, leaves no half of a copy, and takes no backup away."""
        before = self.backups()
        done = self.attempt(script, BACKUP_KEEP="3")
        assert done.returncode == 1 and f"FAILED: {reason}" in done.stderr, done
        assert self.backups() == before
        assert self.status()["failing"] is True
        assert "copy" not in self.run("ls /data/backups/.state")
        saw(done.stderr.strip())

    def backups(self) -> list[str]:
        return sorted(self.run("cd /data/backups && ls").split())

    def status(self) -> Json:
        told: Json = json.loads(self.run("cat /run/vestige-backup/status.json"))
        return told

    def query(self, sql: str, file: str = "/data/vestige.db") -> str:
        return self.run(f'sqlite3 -readonly {file} "{sql}"').strip()


@pytest.fixture(scope="module")
def container(images: Images, tool: str) -> Iterator[Container]:
    name, image = "vestige-backup-walk", f"{images.vestige}:{images.native_tag}"
    run(tool, "run", "--detach", "--rm", "--name", name, "--network", "none", "--read-only", "--user", "10001:0",
        "--no-healthcheck", "--cap-drop", "all", "--tmpfs", "/data:rw,size=128m,mode=1777",
        "--volume", "/run/vestige-backup", "--entrypoint", "sleep", image, "infinity")  # fmt: skip
    yield Container(tool, name)
    run(tool, "rm", "--force", "--time", "0", name)


def test_without_a_database_there_is_no_backup(container: Container) -> None:
    container.run("mkdir -p /data/backups")
    container.fails("there is no /data/vestige.db yet")
    assert container.status() == {"failing": True, "succeeded_at": None, "due_at": None}


@pytest.fixture(scope="module")
def memory(container: Container) -> Container:
    """A database in WAL mode as Vestige's, with so much in it that a copy takes a moment."""
    container.run(r"""
        sqlite3 /data/vestige.db "PRAGMA journal_mode = WAL;
          CREATE TABLE schema_version (version INTEGER PRIMARY KEY);
          CREATE TABLE knowledge_nodes (id INTEGER PRIMARY KEY, content TEXT NOT NULL);
          CREATE VIRTUAL TABLE words USING fts5 (content);
          WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
          INSERT INTO knowledge_nodes SELECT i, hex(randomblob(150)) FROM n;" >/dev/null
        """)
    return container


def test_a_backup_holds_one_state_of_the_database_and_no_writer_waits_for_it(memory: Container) -> None:
    # Without a busy timeout each wait for a lock is an error.
    done = memory.attempt(
        """
        while [ ! -e /data/stop ]; do
          echo "INSERT INTO knowledge_nodes (content) VALUES ('written meanwhile');"
          echo "INSERT INTO words VALUES ('written meanwhile');"
        done | sqlite3 -cmd '.timeout 0' /data/vestige.db 2>/data/errors &
        for _ in 1 2 3; do vestige-backup || exit 1; done
        touch /data/stop
        wait
        cat /data/errors
        rm /data/stop /data/errors
        """,
        BACKUP_KEEP="3",
    )
    assert (done.returncode, done.stdout) == (0, ""), done
    counts = []
    for name in memory.backups():
        ok, count, newest = memory.query(
            "PRAGMA integrity_check; SELECT count(*), max(id) FROM knowledge_nodes;", f"/data/backups/{name}"
        ).replace("|", "\n").split()  # fmt: skip
        assert (ok, count) == ("ok", newest)
        counts.append(int(count))
    assert 40000 < counts[0] < counts[1] < counts[2] < int(memory.query("SELECT count(*) FROM knowledge_nodes"))
    assert memory.status()["failing"] is False
    saw(done.stderr)


def test_the_newest_are_kept_and_nothing_is_deleted_that_it_did_not_make(memory: Container) -> None:
    others = ["vestige-20260101-000000.db", "vestige-backup-20200101T000000Z.db", "mine.db"]
    memory.run(f"cd /data/backups && touch {' '.join(others)} && echo ../../data/vestige.db >>.state/made")
    before = memory.backups()
    assert memory.back_up(keep=2).returncode == 0
    own = [name for name in memory.backups() if name not in others]
    assert set(others) <= set(memory.backups()) and len(own) == 2
    assert own[0] == [name for name in before if name not in others][-1]
    memory.run(f"cd /data/backups && rm {' '.join(others)} && test -e /data/vestige.db")


def test_one_that_is_killed_at_any_point_is_no_backup(memory: Container) -> None:
    killed = memory.run(
        """
        for ms in $(seq 0 40 400); do
          setsid vestige-backup 2>/dev/null &
          sleep "0.$(printf %03d "$ms")"
          if kill -9 -- -$! 2>/dev/null; then killed=$((killed + 1)); fi
          wait $! 2>/dev/null || true
        done
        for file in /data/backups/*.db; do test "$(sqlite3 "$file" 'PRAGMA integrity_check')" = ok; done
        echo $killed
        """,
        BACKUP_KEEP="2",
    )
    assert len(memory.backups()) <= 3
    assert memory.back_up().returncode == 0
    assert memory.run("ls /data/backups/.state").split() == ["attempted", "made", "succeeded"]
    saw(f"killed {killed.strip()} times; each backup is whole")


def test_a_full_disk_is_said_and_leaves_the_backups_that_are_there(memory: Container) -> None:
    memory.run("head -c 1G /dev/zero >/data/filler 2>/dev/null || true")
    memory.fails("/data is full: ")
    memory.run("rm /data/filler")


def test_a_disk_that_takes_no_more_in_the_middle_is_said(memory: Container) -> None:
    memory.fails("the database cannot be copied", "ulimit -f 2000; trap '' XFSZ; vestige-backup")


def test_a_damaged_database_is_said(memory: Container) -> None:
    damage = """
        cp /data/vestige.db /data/sound.db
        dd if=/dev/urandom of=/data/vestige.db bs=4096 seek=500 count=200 conv=notrunc 2>/dev/null
        """
    memory.run(damage)
    memory.fails("the ")
    memory.run("mv /data/sound.db /data/vestige.db")


def test_a_database_of_something_else_is_said(memory: Container) -> None:
    memory.run("mv /data/vestige.db /data/ours.db; sqlite3 /data/vestige.db 'CREATE TABLE customers (name TEXT)'")
    memory.fails("the copy cannot be used: it has no table knowledge_nodes")
    memory.run("mv /data/ours.db /data/vestige.db; rm -f /data/vestige.db-*")
    assert memory.back_up().returncode == 0


def test_standard_output_takes_a_backup_and_standard_input_gives_it_back(memory: Container) -> None:
    before = memory.backups()
    said = memory.attempt("vestige-backup - >/data/out.db && sha256sum </data/out.db")
    assert said.returncode == 0 and memory.backups() == before
    assert re.search(r"\d+ memories, \d+ bytes, sha256 (\w+)", said.stderr)[1] == said.stdout.split()[0]  # type: ignore[index]
    count = memory.query("SELECT count(*) FROM knowledge_nodes")
    memory.run("sqlite3 /data/vestige.db 'DELETE FROM knowledge_nodes WHERE id > 1'")
    cut = memory.attempt("head -c 2000000 /data/out.db | vestige-restore -")
    assert cut.returncode == 1 and "is damaged" in cut.stderr
    assert memory.query("SELECT count(*) FROM knowledge_nodes") == "1"
    assert f"restored {count} memories" in memory.run("vestige-restore - </data/out.db; rm /data/out.db")
    assert memory.query("SELECT count(*) FROM knowledge_nodes") == count
    memory.run("rm /data/vestige-before-restore-*")


def test_without_its_container_a_backup_on_the_volume_is_refused(memory: Container) -> None:
    done = memory.attempt("vestige-backup")
    assert done.returncode == 1 and "run this in the container backup" in done.stderr


def test_a_time_that_was_missed_is_made_up_for(memory: Container) -> None:
    before = memory.backups()
    memory.run("touch -d '2 days ago' /data/backups/.state/attempted")
    schedule = {"BACKUP_KEEP": "9", "BACKUP_SCHEDULE": "0 3 * * *"}
    began = memory.status()["succeeded_at"]
    process = memory.run("setsid vestige-backup --schedule >/dev/null 2>&1 & echo $!", **schedule).strip()
    eventually("a backup", lambda: memory.status()["succeeded_at"] != began)
    memory.run(f"kill -9 -- -{process}")
    assert len(memory.backups()) == len(before) + 1
    assert memory.status()["due_at"] > memory.status()["succeeded_at"]


def test_another_schedule_is_said_and_does_not_end_the_container(memory: Container) -> None:
    schedules = ["@daily", "*/0 3 * * *", "0 3 1 * 1", "60 3 * * *", "0 5-3 * * *", "0 3 31 2 *"]
    script = """
        for BACKUP_SCHEDULE in "$@"; do
          export BACKUP_SCHEDULE
          timeout --kill-after 0.1 0.4 vestige-backup --schedule
          echo "$? $(cat /run/vestige-backup/status.json)"
        done
        """
    done = memory.attempt(f"set -- {shlex.join(schedules)}\n{textwrap.dedent(script)}", BACKUP_KEEP="9")
    for schedule in schedules:
        assert f"BACKUP_SCHEDULE is '{schedule}'; it takes five fields of cron" in done.stderr
    assert [line.partition(" ")[0] for line in done.stdout.splitlines()] == ["124"] * len(schedules)
    assert done.stdout.count('"failing": true') == done.stdout.count('"due_at": null') == len(schedules)


@pytest.fixture(scope="module")
def uploading(memory: Container) -> Container:
    """The container with the process of the container upload, whose command the file /data/command holds."""
    run(memory.tool, "exec", "--detach", memory.name, "sh", "-c", UPLOAD, "upload", "sh", "/data/command")
    return memory


def test_an_upload_has_the_backup_and_its_failure_is_one_of_the_backup(uploading: Container) -> None:
    uploading.run("""echo 'cp "$BACKUP" /data/uploaded' >/data/command""")
    done = uploading.back_up(BACKUP_UPLOAD_SECONDS="20")
    assert done.returncode == 0 and "uploaded /data/backups/vestige-backup-" in done.stderr
    assert uploading.run(f"cmp /data/uploaded /data/backups/{uploading.backups()[-1]}; rm /data/uploaded") == ""
    uploading.run("echo 'exit 7' >/data/command")
    done = uploading.back_up(BACKUP_UPLOAD_SECONDS="20")
    assert done.returncode == 1 and "ended with status 7: see the log of the container upload" in done.stderr
    assert uploading.status()["failing"] is True


def test_an_upload_that_does_not_end_is_given_up_and_its_answer_is_not_the_next_ones(uploading: Container) -> None:
    uploading.run("echo 'sleep 3; exit 9' >/data/command")
    done = uploading.back_up(BACKUP_UPLOAD_SECONDS="1")
    assert done.returncode == 1 and "did not end within 1 s" in done.stderr
    uploading.run("echo 'exit 0' >/data/command")
    assert uploading.back_up(BACKUP_UPLOAD_SECONDS="20").returncode == 0
    assert uploading.status()["failing"] is False
