"""The stages of one `dvc repro` are forked from a process that has done its imports.

A stage is a command of its own, and the most of a short one was its start: Python, papermill, a kernel, and
in it torch. Under DVC the first stage starts a server, which imports what is not this project's own, so that
every stage reads changed code anew. The next ones hand it their arguments, environment and output, and wait;
it forks a process that runs the command, beside it one that becomes the kernel, and from that one the process
that workers are forked from. It ends with DVC.

Wherever this can't be done (another system than Linux, a GPU, another environment than the server's, no DVC),
a stage starts as it always did."""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

IMPORTS = ("papermill", "ipykernel.kernelapp", "torch", "torchvision", "pandas", "scipy.stats", "accelerate")
_OF_A_STAGE = ("DVC_STAGE", "_", "SHLVL", "PWD", "OLDPWD")  # variables in which the stages of one DVC differ
_BYTES = 1 << 20  # of a request, at most
_FORKED = None  # in a process that the server forked: the end of a pipe at which its kernel waits


def _environment() -> dict:
    return {name: value for name, value in os.environ.items() if name not in _OF_A_STAGE}


def _dvc():
    "The process of DVC that this one belongs to, or `None`."
    import psutil

    for process in psutil.Process().parents():
        with suppress(psutil.Error):
            if any(Path(word).name in ("dvc", "dvc.exe") for word in process.cmdline()[:3]):
                return process.pid
    return None


def _address(dvc):
    "Where the server of a process of DVC listens: a socket in a folder that only its user may open."
    folder = Path(tempfile.gettempdir()) / f"advbn-{os.getuid()}-{dvc}"
    return folder / "stages"


def _possible() -> bool:
    from .base.machine import lack_of_cuda

    return sys.platform == "linux" and hasattr(os, "pidfd_open") and bool(lack_of_cuda())


# --- in the command of a stage


def _start_server(dvc, address):
    "Let a server begin its imports; of several one stays."
    with suppress(OSError):
        address.parent.mkdir(mode=0o700, exist_ok=True)
        subprocess.Popen(
            [sys.executable, "-m", "advbn.warm", str(address), str(dvc)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _connected(address):
    "A connection to a server of this user at `address`, or `None`."
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if address.parent.stat().st_uid == os.getuid():
            connection.connect(str(address))
            return connection
    except OSError:
        pass
    connection.close()
    return None


def run_warm(arguments: list) -> int | None:
    """Run `advbn ARGUMENTS`, a stage of `dvc repro`, in a process forked from a server that has done its
    imports; returns its exit status, or `None` where there is no such server (yet), and it has to be run as
    usual.

    Signals are passed on."""
    dvc = _dvc() if _possible() else None
    if dvc is None:
        return None
    address = _address(dvc)
    if len(os.fsencode(address)) > 107:  # more than a socket's name can have
        return None
    connection = _connected(address)
    if connection is None:
        _start_server(dvc, address)
        return None
    child = 0
    with connection, suppress(OSError, ValueError):
        request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        text = json.dumps(request).encode()
        if len(text) >= _BYTES:
            return None
        sys.stdout.flush()
        socket.send_fds(connection, [text + b"\n"], [0, 1, 2])
        answers = connection.makefile()
        child = int(answers.readline())  # 0 for what the server can't run
        if child:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda number, frame: _send(child, number))
            status = int(answers.readline())
            return status if status >= 0 else 128 - status  # as a shell says that a signal ended it
    return 1 if child else None  # 1: the server has gone, and the process with it


def _send(process, number):
    with suppress(ProcessLookupError):
        os.kill(process, number)


# --- in the server


def _received(connection):
    "What is asked for at a connection, and the handles that came with it."
    text, handles, _, _ = socket.recv_fds(connection, _BYTES, 3)  # two or three
    while not text.endswith(b"\n"):
        more = connection.recv(_BYTES)
        if not more:
            raise ValueError("a request that ends too early")
        text += more
    return json.loads(text), handles


def serve(address: Path, dvc: int):
    "Import what stages import, then fork a process for each that asks, until the process `dvc` has ended."
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    began = _environment()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    lock = address.with_name("lock")
    try:
        with open(lock, "x") as file:
            print(os.getpid(), file=file)
    except FileExistsError:
        return  # another one was first
    try:
        ended = os.pidfd_open(dvc)
        for module in IMPORTS:
            __import__(module)
        listener.bind(str(address))
        listener.listen()
        with selectors.DefaultSelector() as wanted:
            wanted.register(listener, selectors.EVENT_READ)
            wanted.register(ended, selectors.EVENT_READ)
            _attend(wanted, listener, ended, began)
    finally:
        for path in (address, lock):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            address.parent.rmdir()


def _attend(wanted, listener, ended, began):
    "Answer what happens: a command, the end of a process, the end of a command, the end of DVC."
    children = {}  # (process, handle that tells of its end, connection), by each of the last two
    while True:
        for key, _ in wanted.select():
            if key.fileobj is listener:
                connection = listener.accept()[0]
                child = _begun(connection, began, [listener, ended, *children])
                if child is None:
                    connection.close()
                    continue
                entry = (child, os.pidfd_open(child), connection)
                for handle in entry[1:]:
                    children[handle] = entry
                    wanted.register(handle, selectors.EVENT_READ)
            elif key.fileobj == ended:
                return
            elif key.fileobj in children:
                _finished(wanted, children, key.fileobj)


def _finished(wanted, children, handle):
    "Say a process's exit status to the command that waits for it; end it where the command has gone."
    child, process, connection = children[handle]
    if handle is connection:
        _send(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        connection.sendall(f"{status}\n".encode())
    for each in (process, connection):
        del children[each]
        wanted.unregister(each)
    os.close(process)
    connection.close()


def _begun(connection, began, others):
    "The process that runs what is asked for at a connection; `None` where the server can't."
    try:
        request, handles = _received(connection)
    except (OSError, ValueError):
        return None
    environment = request["environment"]
    of_server = {name: v for name, v in environment.items() if name not in _OF_A_STAGE}
    of_server.setdefault("MPLBACKEND", began["MPLBACKEND"])
    if of_server != began:
        connection.sendall(b"0\n")
        child = None
    elif (child := os.fork()) == 0:
        for other in others:
            other.close() if isinstance(other, socket.socket) else os.close(other)
        connection.close()
        _become(request, handles)
    else:
        connection.sendall(f"{child}\n".encode())
    for handle in handles:
        os.close(handle)
    return child


# --- in what the server forked


def _ended(verb):
    "Run `verb` and end this process with its exit status, whatever happens."
    status = 1
    try:
        verb()
        status = 0
    except SystemExit as asked:
        status = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
        if isinstance(asked.code, str):
            print(asked.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _drawn_anew():
    "Let random numbers differ from those of other processes with the same imports; Python's own do."
    for module in ("numpy.random", "torch"):
        sys.modules[module].seed()


def _become(request, handles):
    "Be the process of a stage, with a second one that waits to become its kernel."
    global _FORKED
    os.setpgid(0, 0)
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
        os.close(handle)
    _drawn_anew()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    waiting, _FORKED = os.pipe()
    parent = os.getpid()
    if (kernel := os.fork()) == 0:
        os.close(_FORKED)
        _ended(lambda: _kernel(waiting, parent))
    os.close(waiting)
    _FORKED = (_FORKED, kernel)
    sys.argv = ["advbn", *request["arguments"]]

    def command():
        from .cli import main

        main()

    _ended(command)


def _server_of_workers(waiting):
    "Wait until the kernel wants a process that workers are forked from, then be it; end if it never does."
    import fcntl

    with waiting, suppress(ValueError):
        asked, handles = _received(waiting)
        os.environ.clear()
        os.environ.update(asked["environment"])
        apart = [fcntl.fcntl(handle, fcntl.F_DUPFD, 100 + max(asked["numbers"])) for handle in handles]
        for handle, number in zip(apart, asked["numbers"]):
            os.dup2(handle, number)
        for handle in {*handles, *apart} - {*asked["numbers"]}:
            os.close(handle)
        exec(asked["code"], {"__name__": "__main__"})


def _fork_server_of_workers():
    "Let multiprocessing's forkserver be forked from this process as it is now, in place of a new Python."
    from multiprocessing import util

    usual, (ours, its) = util.spawnv_passfds, socket.socketpair()
    if (process := os.fork()) == 0:
        ours.close()
        _drawn_anew()
        _ended(lambda: _server_of_workers(its))
    its.close()

    def reap(number, frame):
        "A kernel that shuts down ends its children, and waits for seconds for one whose end is not noticed."
        with suppress(ChildProcessError):
            os.waitpid(process, os.WNOHANG)

    signal.signal(signal.SIGCHLD, reap)

    def spawnv_passfds(path, words, handles):
        if "multiprocessing.forkserver" not in words[-1]:
            return usual(path, words, handles)
        util.spawnv_passfds = usual
        asked = {"code": words[-1], "numbers": list(handles), "environment": dict(os.environ)}
        with ours:
            socket.send_fds(ours, [json.dumps(asked).encode() + b"\n"], handles)
        return process

    util.spawnv_passfds = spawnv_passfds


def _kernel(waiting, parent):
    "Wait until a notebook is to be run, then be its kernel; end if none is."
    os.setsid()  # signals for a kernel go to its group
    with os.fdopen(waiting) as pipe:
        line = pipe.readline()
    if not line or os.getppid() != parent:
        return
    asked = json.loads(line)
    _drawn_anew()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["ipykernel_launcher", *asked["arguments"], f"--IPKernelApp.parent_handle={parent}"]
    if sys.path[:1] in ([""], [os.getcwd()]):
        del sys.path[0]
    _fork_server_of_workers()
    from ipykernel import kernelapp

    kernelapp.launch_new_instance()


class _Forked:
    "A forked process, as jupyter_client knows a `subprocess.Popen`."

    stdin = stdout = stderr = None

    def __init__(self, pid):
        self.pid, self.returncode, self._lock = pid, None, threading.Lock()

    def poll(self):
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=None):
        until = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("kernel", timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def use_forked_kernel():
    "In a process that a server forked: let the next kernel be the process that waits beside it."
    global _FORKED
    if _FORKED is None:
        return
    from jupyter_client.provisioning import local_provisioner

    (pipe, kernel), _FORKED = _FORKED, None
    usual = local_provisioner.launch_kernel

    def launch_kernel(cmd, env=None, cwd=None, **more):
        local_provisioner.launch_kernel = usual
        if Path(cmd[0]).resolve() != Path(sys.executable).resolve() or cmd[1:3] != [
            "-m",
            "ipykernel_launcher",
        ]:
            os.close(pipe)
            return usual(cmd, env=env, cwd=cwd, **more)
        environment = dict(os.environ if env is None else env)
        asked = {"arguments": cmd[3:], "folder": str(cwd or os.getcwd()), "environment": environment}
        with os.fdopen(pipe, "w") as to_kernel:
            to_kernel.write(json.dumps(asked) + "\n")
        while os.getpgid(kernel) != kernel:
            time.sleep(0.001)
        return _Forked(kernel)

    local_provisioner.launch_kernel = launch_kernel


if __name__ == "__main__":
    from advbn.warm import serve  # as what is forked will know this module

    serve(Path(sys.argv[1]), int(sys.argv[2]))
