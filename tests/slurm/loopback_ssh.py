"""An sshd of our own on loopback, so that pdsh reaches "127.0.0.1" and "localhost" as two hosts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.slurm.cluster import free_ports, which

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "pdsh")
_STARTS_WITHIN_S = 20.0


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if which(name) is None]


class LoopbackSsh:
    """Up within the `with` block; `environment` has pdsh use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (self._port,) = free_ports(1)

    @property
    def environment(self) -> dict[str, str]:
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes"]
        arguments = [f"-p {self._port}", f"-i {self._folder / 'key'}", "-q"]
        return {"PDSH_SSH_ARGS_APPEND": " ".join([*arguments, *(f"-o {o}" for o in options)])}

    def __enter__(self) -> LoopbackSsh:
        for name in ("key", "host_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / name)],
                check=True,
            )
        shutil.copy(self._folder / "key.pub", self._folder / "authorized_keys")
        configuration = self._folder / "sshd_config"
        configuration.write_text(f"""
Port {self._port}
ListenAddress 127.0.0.1
ListenAddress ::1
HostKey {self._folder}/host_key
AuthorizedKeysFile {self._folder}/authorized_keys
PidFile {self._folder}/sshd.pid
PasswordAuthentication no
PermitRootLogin yes
StrictModes no
UsePAM no
""")
        if os.getuid() == 0:  # where sshd locks itself in
            Path("/run/sshd").mkdir(exist_ok=True)
        program = which("sshd")
        assert program is not None
        with (self._folder / "sshd.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                [program, "-D", "-e", "-f", str(configuration)], stderr=log
            )
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.terminate()
        self._daemon.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return
            log = (self._folder / "sshd.log").read_text()
            assert time.monotonic() < deadline, log
            assert self._daemon.poll() is None, log
            time.sleep(0.1)
