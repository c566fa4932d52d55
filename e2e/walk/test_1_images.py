"""The Dockerfiles, built for real: what they refuse, and what is in the images."""

import json
import re

import pytest
from walking import ROOT, Images, Release, attempt, run, saw


def refused_build(tool: str, build_flags: str, url: str, sha256: str) -> str:
    done = attempt(
        tool, "build", *build_flags.split(), "--build-arg", f"VESTIGE_DOWNLOAD_URL={url}",
        "--build-arg", f"VESTIGE_SHA256={sha256}", "-f", "docker/Dockerfile.vestige", ".", cwd=ROOT, timeout=900,
    )  # fmt: skip
    assert done.returncode != 0, "the build went through"
    [sentence] = {line for line in (done.stdout + done.stderr).splitlines() if line.startswith("ERROR:")}
    saw(sentence)
    return sentence


def test_a_wrong_checksum_ends_the_build(release: Release, images: Images, tool: str, build_flags: str) -> None:
    sentence = refused_build(tool, build_flags, release.url, "0" * 64)
    assert "SHA-256 mismatch" in sentence and release.sha256 in sentence


def test_an_empty_checksum_ends_the_build(release: Release, images: Images, tool: str, build_flags: str) -> None:
    assert "VESTIGE_SHA256 is empty" in refused_build(tool, build_flags, release.url, "")


def test_the_known_checksum_is_not_that_of_another_file(
    release: Release, images: Images, tool: str, build_flags: str
) -> None:
    assert "SHA-256 mismatch" in refused_build(tool, build_flags, release.url, "known")


def test_a_truncated_download_ends_the_build(release: Release, images: Images, tool: str, build_flags: str) -> None:
    url = f"{release.url}/truncated"
    assert "failed or ended early" in refused_build(tool, build_flags, url, release.sha256)


@pytest.mark.parametrize("which", ["vestige", "bridge"])
def test_an_image_runs_as_nobody_in_particular(which: str, images: Images, tool: str) -> None:
    name = f"{getattr(images, which)}:{images.tag}"
    [image] = json.loads(run(tool, "inspect", "--type", "image", name).stdout)
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.version"] == images.tag
    assert not [entry for entry in config["Env"] if entry.startswith("VESTIGE_AUTH_TOKEN")]
    saw(f"{name}: user {config['User']}, entry point {config['Entrypoint']}")


def test_the_bridges_image_holds_what_is_pinned_and_nothing_else(images: Images, tool: str) -> None:
    code = (
        "from importlib.metadata import distributions as d; print(*(f'{i.name}=={i.version}' for i in d()), sep='\\n')"
    )
    listed = run(
        tool, "run", "--rm", "--network", "none", "--entrypoint", "python3", f"{images.bridge}:{images.tag}", "-c", code
    )
    installed = {line.replace("_", "-").lower() for line in listed.stdout.split()}
    pinned = set(re.findall(r"^[a-z0-9-]+==\S+", (ROOT / "docker/requirements.txt").read_text(), re.MULTILINE))
    [own] = installed - pinned
    assert own.startswith("vestige-bridge==")
    assert pinned <= installed
    saw(f"{len(pinned)} packages, each as pinned")
