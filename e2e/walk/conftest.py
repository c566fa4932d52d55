"""Fixtures of the deployment test: the images, which are built from a release that is served on loopback."""

import functools
import hashlib
import http.server
import io
import os
import re
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from walking import E2E, ROOT, Images, Release, run, saw

BUILD_FLAGS = "--isolation chroot --network host --pull-never --format docker --layers"


class ReleaseServer(http.server.SimpleHTTPRequestHandler):
    """Serves the release; below /truncated/ it sends only half of the announced length and closes the connection."""

    def do_GET(self) -> None:
        if not self.path.startswith("/truncated/"):
            super().do_GET()
            return
        content = (Path(self.directory) / Path(self.path).name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing; the output of the tests is the log."""


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """Builds a stand-in for Vestige's release, with the same file names, and serves it."""
    folder = tmp_path_factory.mktemp("release")
    binary = folder / "standin"
    run("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(binary), ".",
        cwd=E2E / "standin", env={"CGO_ENABLED": "0"}, timeout=900)  # fmt: skip
    machine = os.uname().machine
    archive = folder / f"vestige-mcp-{machine}-unknown-linux-gnu.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name in ("vestige-mcp", "vestige", "vestige-restore"):
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o755, binary.stat().st_size
            tar.addfile(entry, io.BytesIO(binary.read_bytes()))
    handler = functools.partial(ReleaseServer, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield Release(url, hashlib.sha256(archive.read_bytes()).hexdigest())
        server.shutdown()


@pytest.fixture(scope="session")
def tool() -> str:
    return run(str(ROOT / "docker" / "container-tool")).stdout.strip()


@pytest.fixture(scope="session")
def build_flags(tool: str) -> str:
    """Returns the additional build options; without a Docker engine it also makes the base image if it is missing."""
    if tool == "docker":
        return "--network host"
    run(str(E2E / "base-image"), timeout=900)
    return BUILD_FLAGS


@pytest.fixture(scope="session")
def images(release: Release, tool: str, build_flags: str) -> Images:
    """Builds both images with the guide's two tags (install, upgrade), and Vestige's also without supergateway."""
    arguments = f"--build-arg VESTIGE_DOWNLOAD_URL={release.url} --build-arg VESTIGE_SHA256={release.sha256}"
    for tag, gateway in (("v0.2.0", "supergateway"), ("v0.3.0", "supergateway"), ("e2e-native", "none")):
        printed = run("make", "images", f"TAG={tag}", f"GATEWAY={gateway}", f"CONTAINER_TOOL={tool}",
                      f"BUILD_ARGS={build_flags} {arguments}", cwd=ROOT, timeout=1200)  # fmt: skip
        said = re.findall(r"Without Vestige: \d+ MB", printed.stdout + printed.stderr, re.MULTILINE)
        saw(f"built {tag} with GATEWAY={gateway}. {' '.join(said)}")
    built = Images("localhost/vestige-mcp", "localhost/vestige-bridge", "v0.2.0", "v0.3.0", "e2e-native")
    for name in (f"{built.vestige}:{built.tag}", f"{built.vestige}:{built.native_tag}", f"{built.bridge}:{built.tag}"):
        saw(f"{name}: {run(tool, 'images', '--format', '{{.Size}}', name).stdout.strip()}")
    return built


@pytest.fixture(scope="session")
def loaded(images: Images, tool: str) -> Images:
    """Loads the images into the cluster of KUBECONFIG."""
    load = os.environ.get("LOAD_IMAGE")
    assert os.environ.get("KUBECONFIG"), "KUBECONFIG names no cluster"
    assert load, (
        "LOAD_IMAGE is not set: it is the command that takes an image into the cluster (kind load docker-image …)"
    )
    for name in (images.vestige, images.bridge):
        for tag in (images.tag, images.next_tag, *([images.native_tag] if name == images.vestige else [])):
            run("sh", "-c", f"{load} {name}:{tag}", timeout=600)
    return images


@pytest.fixture(autouse=True)
def _step(request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Prints the name and the output of each test, even if it passes."""
    yield
    out, _ = capfd.readouterr()
    with capfd.disabled():
        print(f"\n== {request.node.name}")
        for line in out.splitlines():
            print(f"   {line}")


def pytest_sessionfinish() -> None:
    subprocess.run(["kubectl", "delete", "namespace", "openclaw", "--wait=false", "--ignore-not-found"],
                   capture_output=True, check=False)  # fmt: skip
