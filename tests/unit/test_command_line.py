from __future__ import annotations

from pathlib import Path

import pytest

from vestige_bridge import __version__
from vestige_bridge.__main__ import main
from vestige_bridge.settings import describe


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory of its own, and none of the variables of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for variable, _, _ in describe():
        monkeypatch.delenv(variable, raising=False)


def test_help_names_every_variable_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["--help"])
    assert exited.value.code == 0
    shown = capsys.readouterr().out
    for variable, default, _ in describe():
        assert f"{variable} (default: {default or 'none'})" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_version_is_the_version_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"vestige-bridge {__version__}\n"


def test_a_command_that_is_none_is_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["start"])
    assert exited.value.code == 2
    assert "start" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["serve"]])
def test_mistakes_are_a_line_each_on_standard_error_and_exit_status_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VESTIGE_BRIDGE_PORT", "http")
    Path(".env").write_text("VESTIGE_BRIDGE_PORT=0\nVESTIGE_MCP_URL=nowhere\nVESTIGE_BRIDGE_HOST\n")
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.partition(":")[0] for line in shown.err.splitlines()] == ["VESTIGE_MCP_URL", "VESTIGE_BRIDGE_PORT"]


@pytest.mark.parametrize(("arguments", "lines"), [(["doctor"], 1), (["doctor", "--quiet"], 0)])
def test_the_doctor_names_a_mistake_in_the_settings(
    arguments: list[str], lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VESTIGE_MCP_URL", "nowhere")
    assert main(arguments) == 1
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == lines
    assert all("VESTIGE_MCP_URL" in line for line in shown)
