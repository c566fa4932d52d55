"""Tests of vestige-backup in Vestige's image: contents of a backup, retention, and reports of failures."""

import json
import re
import shlex
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from walking import ROOT, Images, Json, attempt, run, saw

UPLOAD = (ROOT / "charts" / "vestige" / "files" / "upload.sh").read_text()
EPILOGUE = """
status=$?
echo "@@ $status $(cat /run/vestige-backup/status.json 2>/dev/null || echo '{}')"
ls /data/backups 2>/dev/null
echo @@
ls /data/backups/.state 2>/dev/null
"""


@dataclass(frozen=True)
class Outcome:
    """The exit code and output of a script, and the files after it."""

    code: int
    stdout: str
    stderr: str
    status: Json
    backups: list[str]
    state: list[str]


@dataclass(frozen=True)
class Container:
    """A container of the image, hardened as in the chart, with a small disk and without a running Vestige."""

    tool: str
    name: str

    def attempt(self, script: str, keep: int = 3, **variables: str) -> Outcome:
        environment = [f"--env={name}={value}" for name, value in {"BACKUP_KEEP": str(keep), **variables}.items()]
        whole = f"(\n{textwrap.dedent(script)}\n)\n{EPILOGUE}"
        done = attempt(self.tool, "exec", *environment, self.name, "bash", "-c", whole)
        assert done.returncode == 0, done.stderr
        stdout, told, state = done.stdout.split("@@")
        [first, *backups] = told.splitlines()
        code, status = first.split(maxsplit=1)
        return Outcome(int(code), stdout, done.stderr.strip(), json.loads(status), sorted(backups), state.split())

    def run(self, script: str, keep: int = 3, **variables: str) -> Outcome:
        done = self.attempt(f"set -e\n{textwrap.dedent(script)}", keep, **variables)
        assert done.code == 0, done
        return done

    def fails(self, reason: str, prepare: str = "", command: str = "vestige-backup", repair: str = "") -> None:
        """Checks that a failure is logged and in the status, leaves no partial copy, and deletes no backup."""
        done = self.attempt(f"""
            {prepare}
            before=$(ls /data/backups)
            {command}
            status=$?
            [ "$before" = "$(ls /data/backups)" ] || echo "The backups changed."
            {repair}
            exit $status
            """)  # fmt: skip
        assert (done.code, done.stdout) == (1, ""), done
        assert done.stderr.splitlines()[-1].startswith(f"vestige-backup: FAILED: {reason}"), done
        assert done.status["failing"] is True
        assert "copy.db" not in done.state
        saw(done.stderr)


@pytest.fixture(scope="module")
def container(images: Images, tool: str) -> Iterator[Container]:
    name, image = "vestige-backup-walk", f"{images.vestige}:{images.native_tag}"
    run(tool, "run", "--detach", "--rm", "--name", name, "--network", "none", "--read-only", "--user", "10001:0",
        "--no-healthcheck", "--cap-drop", "all", "--tmpfs", "/data:rw,size=128m,mode=1777",
        "--volume", "/run/vestige-backup", "--entrypoint", "sleep", image, "infinity")  # fmt: skip
    yield Container(tool, name)
    run(tool, "rm", "--force", "--time", "0", name)


def test_without_a_database_there_is_no_backup(container: Container) -> None:
    container.fails("there is no /data/vestige.db yet", prepare="mkdir -p /data/backups")


@pytest.fixture(scope="module")
def memory(container: Container) -> Container:
    """Creates a database in WAL mode like Vestige's, large enough that a copy takes some time."""
    container.run(r"""
        sqlite3 /data/vestige.db "PRAGMA journal_mode = WAL;
          CREATE TABLE schema_version (version INTEGER PRIMARY KEY);
          CREATE TABLE knowledge_nodes (id INTEGER PRIMARY KEY, content TEXT NOT NULL);
          CREATE VIRTUAL TABLE words USING fts5 (content);
          WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
          INSERT INTO knowledge_nodes SELECT i, hex(randomblob(150)) FROM n;"
        """)
    return container


def test_a_backup_contains_one_state_of_the_database_and_no_writer_waits_for_it(memory: Container) -> None:
    # Without a busy timeout, each wait for a lock is an error.
    done = memory.run("""
        while [ ! -e /data/stop ]; do
          echo "INSERT INTO knowledge_nodes (content) VALUES ('written meanwhile');"
          echo "INSERT INTO words VALUES ('written meanwhile');"
        done | sqlite3 -cmd '.timeout 0' /data/vestige.db 2>/data/errors &
        for _ in 1 2 3; do vestige-backup; done
        touch /data/stop
        wait
        cat /data/errors
        rm /data/stop /data/errors
        for file in /data/backups/*.db /data/vestige.db; do
          sqlite3 "$file" 'PRAGMA integrity_check; SELECT count(*), max(id) FROM knowledge_nodes' | tr '|\\n' '  '
          echo
        done
        """)
    states = [line.split() for line in done.stdout.splitlines()]
    assert [(ok, count == newest) for ok, count, newest in states] == [("ok", True)] * 4, done
    counts = [int(count) for _, count, _ in states]
    assert 40000 < counts[0] < counts[1] < counts[2] < counts[3]
    assert done.status["failing"] is False
    saw(done.stderr)


def test_the_newest_backups_are_kept_and_only_its_own_are_deleted(memory: Container) -> None:
    others = ["mine.db", "vestige-20260101-000000.db", "vestige-backup-20200101T000000Z.db"]
    before = memory.run(f"cd /data/backups; touch {' '.join(others)}; echo ../vestige.db >>.state/made").backups
    after = memory.run("vestige-backup; test -e /data/vestige.db", keep=2).backups
    own = [name for name in after if name not in others]
    assert set(others) <= set(after) and len(own) == 2
    assert own[0] == [name for name in before if name not in others][-1]
    memory.run(f"cd /data/backups; rm {' '.join(others)}")


def test_a_backup_that_is_killed_at_any_point_leaves_no_backup(memory: Container) -> None:
    done = memory.run(
        """
        for ms in $(seq 0 40 400); do
          setsid vestige-backup 2>/dev/null &
          sleep "0.$(printf %03d "$ms")"
          if kill -9 -- -$! 2>/dev/null; then killed=$((killed + 1)); fi
          wait $! 2>/dev/null || true
        done
        for file in /data/backups/*.db; do test "$(sqlite3 "$file" 'PRAGMA integrity_check')" = ok; done
        vestige-backup
        echo $killed
        """
    )
    assert done.state == ["attempted", "made", "succeeded"]
    saw(f"killed {done.stdout.strip()} times; each backup is complete")


def test_a_full_disk_is_reported_and_leaves_earlier_backups(memory: Container) -> None:
    fill = "head -c 1G /dev/zero >/data/filler 2>/dev/null"
    memory.fails("/data is full: ", prepare=fill, repair="rm /data/filler")


def test_a_disk_that_fails_during_the_copy_is_reported(memory: Container) -> None:
    limited = "(ulimit -f 2000; trap '' XFSZ; vestige-backup)"
    memory.fails("the database cannot be copied", command=limited)


def test_a_folder_in_which_no_file_can_be_created_is_reported(memory: Container) -> None:
    """Creates no mark of the failure there either, as on a volume without a free inode."""
    memory.run("vestige-backup")
    state = "/data/backups/.state"
    memory.fails("the database cannot be copied", prepare=f"chmod a-w {state}", repair=f"chmod u+w {state}")
    assert memory.run("vestige-backup").status["failing"] is False


def test_a_copy_without_one_of_the_rows_is_not_used(memory: Container) -> None:
    faulty = r"""
            sqlite3() {
              local options=("${@/-readonly/-batch}")
              options[-1]=${options[-1]/ AS copy;/ AS copy; DELETE FROM copy.knowledge_nodes WHERE id = 7;}
              command sqlite3 "${options[@]}"
            }
            export -f sqlite3
            """
    memory.fails("the copy cannot be used: knowledge_nodes has ", prepare=faulty)


def test_a_damaged_database_is_reported(memory: Container) -> None:
    damage = """
            cp /data/vestige.db /data/sound.db
            dd if=/dev/urandom of=/data/vestige.db bs=4096 seek=500 count=200 conv=notrunc 2>/dev/null
            """
    memory.fails("the ", prepare=damage, repair="mv /data/sound.db /data/vestige.db")


def test_a_database_of_another_program_is_reported(memory: Container) -> None:
    replace = "mv /data/vestige.db /data/ours.db; sqlite3 /data/vestige.db 'CREATE TABLE customers (name TEXT)'"
    repair = "mv /data/ours.db /data/vestige.db; rm -f /data/vestige.db-*"
    memory.fails("the copy cannot be used: it has no table knowledge_nodes", prepare=replace, repair=repair)
    assert memory.run("vestige-backup").status["failing"] is False


def test_standard_output_gets_a_backup_and_standard_input_restores_it(memory: Container) -> None:
    before = memory.run("true").backups
    said = memory.run("vestige-backup - >/data/out.db; sha256sum </data/out.db")
    found = re.search(r"(\d+) memories, \d+ bytes, sha256 (\w+)", said.stderr)
    assert found and found[2] == said.stdout.split()[0]
    assert said.backups == before and "copy.db" not in said.state
    done = memory.attempt("""
        sqlite3 /data/vestige.db 'DELETE FROM knowledge_nodes WHERE id > 1'
        head -c 2000000 /data/out.db | vestige-restore - && exit 1
        sqlite3 /data/vestige.db 'SELECT count(*) FROM knowledge_nodes'
        vestige-restore - </data/out.db
        sqlite3 /data/vestige.db 'SELECT count(*) FROM knowledge_nodes'
        rm /data/out.db /data/vestige-before-restore-*
        """)  # fmt: skip
    assert "is damaged" in done.stderr and f"restored {found[1]} memories" in done.stdout
    counts = [line for line in done.stdout.splitlines() if line.isdigit()]
    assert counts == ["1", found[1]]


def test_a_restore_and_a_backup_wait_for_each_other(memory: Container) -> None:
    done = memory.attempt("""
        cp /data/vestige.db /data/other.db
        for command in "vestige-backup" "vestige-restore /data/other.db"; do
          exec 6>>/data/.backup.lock && flock 6
          timeout 1 $command 6>&-
          echo $?
          exec 6>&-
          $command >/dev/null && echo $?
        done
        rm /data/other.db /data/vestige-before-restore-*
        """)  # fmt: skip
    assert done.stdout.split() == ["124", "0", "124", "0"], done
    assert done.status["failing"] is False


def test_outside_its_container_a_backup_on_the_volume_is_rejected(memory: Container) -> None:
    done = memory.attempt("unset BACKUP_KEEP; vestige-backup")
    assert done.code == 1 and "run this in the container backup" in done.stderr


def test_a_missed_backup_is_made_at_the_start(memory: Container) -> None:
    began = int(time.time())
    done = memory.run(
        """
        ls /data/backups | wc -l
        touch /data/before
        touch -d '2 days ago' /data/backups/.state/attempted
        setsid vestige-backup --schedule &
        until [ /data/backups/.state/succeeded -nt /data/before ]; do sleep 0.2; done
        sleep 0.5
        kill -9 -- -$!
        rm /data/before
        """,
        keep=9,
        BACKUP_SCHEDULE="0 3 * * *",
    )
    assert len(done.backups) == int(done.stdout) + 1
    assert began <= done.status["succeeded_at"] < done.status["due_at"]


def test_an_invalid_schedule_is_reported_and_does_not_end_the_container(memory: Container) -> None:
    schedules = ["@daily", "*/0 3 * * *", "0 3 1 * 1", "60 3 * * *", "0 5-3 * * *", "0 3 31 2 *"]
    script = """
        for BACKUP_SCHEDULE in "$@"; do
          export BACKUP_SCHEDULE
          timeout --kill-after 0.1 0.4 vestige-backup --schedule
          echo "$? $(cat /run/vestige-backup/status.json)"
        done
        """
    done = memory.attempt(f"set -- {shlex.join(schedules)}\n{textwrap.dedent(script)}")
    for schedule in schedules:
        assert f"BACKUP_SCHEDULE is '{schedule}'; it takes five fields of cron" in done.stderr
    assert [line.partition(" ")[0] for line in done.stdout.splitlines()] == ["124"] * len(schedules)
    assert done.stdout.count('"failing": true') == done.stdout.count('"due_at": null') == len(schedules)


@pytest.fixture(scope="module")
def uploading(memory: Container) -> Container:
    """Starts the process of the upload container, which runs the command in the file /data/command."""
    run(memory.tool, "exec", "--detach", memory.name, "sh", "-c", UPLOAD, "upload", "sh", "/data/command")
    return memory


def test_an_upload_gets_the_backup_and_if_it_fails_the_backup_failed(uploading: Container) -> None:
    copies = """echo 'cp "$BACKUP" /data/uploaded' >/data/command; vestige-backup
                cmp /data/uploaded "$(ls /data/backups/*.db | tail -n 1)"; rm /data/uploaded"""
    done = uploading.run(copies, BACKUP_UPLOAD_SECONDS="20")
    assert "uploaded /data/backups/vestige-backup-" in done.stderr and done.status["failing"] is False
    done = uploading.attempt("echo 'exit 7' >/data/command; vestige-backup", BACKUP_UPLOAD_SECONDS="20")
    assert done.code == 1 and "ended with status 7: see the log of the container upload" in done.stderr
    assert done.status["failing"] is True


@pytest.mark.parametrize("command", ["exec sleep 300", "trap '' TERM; while :; do sleep 1; done"])
def test_an_upload_that_takes_too_long_fails_and_is_ended_before_the_next(uploading: Container, command: str) -> None:
    hung = f"printf %s {shlex.quote(command)} >/data/command; vestige-backup"
    done = uploading.attempt(hung, BACKUP_UPLOAD_SECONDS="3")
    assert done.code == 1 and "did not end within 3 s" in done.stderr
    done = uploading.run("sleep 12; echo 'exit 0' >/data/command; vestige-backup", BACKUP_UPLOAD_SECONDS="20")
    assert done.status["failing"] is False
