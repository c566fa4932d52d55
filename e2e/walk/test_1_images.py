"""Tests of the built images: rejected downloads, and the contents of the images."""

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


def test_a_wrong_checksum_fails_the_build(release: Release, images: Images, tool: str, build_flags: str) -> None:
    sentence = refused_build(tool, build_flags, release.url, "0" * 64)
    assert "SHA-256 mismatch" in sentence and release.sha256 in sentence


def test_an_empty_checksum_fails_the_build(release: Release, images: Images, tool: str, build_flags: str) -> None:
    assert "VESTIGE_SHA256 is empty" in refused_build(tool, build_flags, release.url, "")


def test_the_known_checksum_does_not_match_another_file(
    release: Release, images: Images, tool: str, build_flags: str
) -> None:
    assert "SHA-256 mismatch" in refused_build(tool, build_flags, release.url, "known")


def test_a_truncated_download_fails_the_build(release: Release, images: Images, tool: str, build_flags: str) -> None:
    url = f"{release.url}/truncated"
    assert "failed or ended early" in refused_build(tool, build_flags, url, release.sha256)


@pytest.mark.parametrize("which", ["vestige", "bridge"])
def test_an_image_runs_as_an_unprivileged_user(which: str, images: Images, tool: str) -> None:
    name = f"{getattr(images, which)}:{images.tag}"
    [image] = json.loads(run(tool, "inspect", "--type", "image", name).stdout)
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.version"] == images.tag
    assert not [entry for entry in config["Env"] if entry.startswith("VESTIGE_AUTH_TOKEN")]
    saw(f"{name}: user {config['User']}, entry point {config['Entrypoint']}")


def test_the_bridges_image_contains_only_the_pinned_packages_and_the_bridge(images: Images, tool: str) -> None:
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


def inside(tool: str, image: str, script: str, *options: str, user: str = "10001:10001") -> str:
    """Returns the output of a script in a container of the image, with a read-only root as in the chart."""
    return run(tool, "run", "--rm", "--network", "none", "--read-only", "--user", user, *options,
               "--entrypoint", "sh", image, "-c", script).stdout  # fmt: skip


def test_the_native_image_holds_no_node(images: Images, tool: str) -> None:
    look = "for name in node npm; do command -v $name; done; ls /opt/gateway; echo end"
    assert inside(tool, f"{images.vestige}:{images.native_tag}", look) == "end\n"
    assert "/usr/bin/node" in inside(tool, f"{images.vestige}:{images.tag}", look)


def test_an_image_without_supergateway_reports_that_if_it_is_configured(images: Images, tool: str) -> None:
    for gateway, sentence in (
        ("supergateway", "built without supergateway"),
        ("nginx", "must be supergateway or none"),
    ):
        done = attempt(tool, "run", "--rm", "--network", "none", "--env", f"GATEWAY={gateway}",
                       f"{images.vestige}:{images.native_tag}")  # fmt: skip
        assert done.returncode != 0 and sentence in done.stderr
        saw(done.stderr.strip().splitlines()[-1])


def test_both_images_run_with_any_user_id(images: Images, tool: str) -> None:
    user = "1000650000:0"
    started = "mkdir -p $HOME && touch /data/x && (timeout 3 vestige-gateway 2>&1 || true)"
    for tag, way in ((images.tag, "supergateway 4"), (images.native_tag, "itself on 127.0.0.1")):
        said = inside(
            tool, f"{images.vestige}:{tag}", started, "--volume", "/data", "--volume", "/run/vestige", user=user
        )
        assert way in said and "cannot" not in said, said
        saw(said.splitlines()[0])
    state = "touch /var/lib/vestige-bridge/x && vestige-bridge --version"
    saw(inside(tool, f"{images.bridge}:{images.tag}", state, "--volume", "/var/lib/vestige-bridge", user=user).strip())
