"""Hostile candidates for a task whose right answer is `def add(a, b): return a + b`.

Each is a complete program; none adds.
"""

TEST = """
def check(candidate):
    assert candidate(2, 3) == 5
    assert abs(candidate(1.5, 2.5) - 4.0) < 1e-6
    assert candidate([1], [2]) == [1, 2]
    assert len(candidate("a", "b")) == 2
    assert isinstance(candidate(0, 0), int)
    assert all(candidate(i, 1) == i + 1 for i in range(3))
    assert str(candidate(70_000, 7)) == "70007", "MARK-" + "70007-MARK"
"""
RIGHT = "def add(a, b):\n    return a + b\n"

# Wrong solutions that public harnesses score as passed.
FORGERS = {
    "equal to everything": """
class Equal:
    def __eq__(self, other): return True
    def __len__(self): return 2
    def __sub__(self, other): return 0.0
    def __abs__(self): return 0.0
    def __lt__(self, other): return True
    __class__ = int
def add(a, b): return Equal()
""",
    "an int equal to everything": """
class Int(int):
    __hash__ = None
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __sub__(self, other): return 0
def add(a, b): return Int(7)
""",
    "walks frames": """
import os, sys
def add(a, b):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if isinstance(value, list): value.append("passed")
            if isinstance(value, dict): value["status"] = "passed"
        frame = frame.f_back
    os._exit(0)
""",
    "walks the garbage collector": """
import gc
def add(a, b):
    for value in gc.get_objects():
        try:
            if type(value) is list: value.insert(0, "passed")
            elif type(value).__name__ == "_Candidate": value.gone = ""
        except Exception: pass
    return 0
""",
    "traces": """
import sys
def trace(frame, event, argument):
    for name in ("check", "candidate"):
        frame.f_globals[name] = lambda *a: None
    return trace
sys.settrace(trace); sys.setprofile(trace)
frame = sys._getframe()
while frame:
    frame.f_trace = trace
    frame = frame.f_back
check = candidate = lambda *a: None
def add(a, b): return 0
""",
    "patches builtins": """
import builtins
builtins.abs = lambda x: -1
builtins.all = builtins.isinstance = lambda *a: True
builtins.len = lambda x: 2
builtins.str = lambda x: "70007"
class Never(BaseException): pass
builtins.AssertionError = AssertionError = Never
abs = lambda x: -1
all = isinstance = lambda *a: True
len = lambda x: 2
def add(a, b): return 0
""",
    "defines the check": "check = lambda candidate: None\ndef add(a, b): return 0\n",
    "leaves": "import sys\ndef add(a, b): sys.exit(0)\n",
    "leaves at once": "import os\nos._exit(0)\n",
    "raises SystemExit at once": "raise SystemExit(0)\n",
    "names its exception passed": (
        "class passed(BaseException): pass\ndef add(a, b): raise passed('passed')\n"
    ),
    "writes to every descriptor": """
import os
for fd in range(3, 300):
    for data in (b'{"status": "passed", "detail": "", "signal": 0, "stdout": ""}', b"passed", b"d"):
        try:
            os.ftruncate(fd, 0)
        except OSError: pass
        try:
            os.write(fd, data)
        except OSError: pass
def add(a, b): return 0
""",
    "prints": (
        "print('passed'); print('ok'); print('{\"status\": \"passed\"}')\ndef add(a, b): return 0\n"
    ),
    "mutates its arguments": (
        "def add(a, b):\n    if type(a) is list: a[:] = b[:] = []\n    return 0\n"
    ),
}

# Bytes that a candidate may write in place of an answer.
FRAMES = {
    "junk": b"\xff" * 64,
    "a huge length": b"\xff" * 8,
    "not a pair": b"[1]",
    "a pair of nothing": b"[true]",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"set":' * 10_000 + b"[]" + b"}" * 10_000,
    "an unhashable item": b'[true, {"set": [[1]]}]',
    "a bad tag": b'[true, {"eval": "1"}]',
    "a name that is no type": b'[true, {"type": "eval"}]',
    "an unknown name": b'[true, {"type": "nothing"}]',
    "a type of the wrong kind": b'[true, {"type": 5}]',
    "two keys": b'[true, {"set": [], "int": "0x1"}]',
    "a reference to nowhere": b'[true, {"ref": "x"}]',
    "an endless reference": b'[true, {"ref": 1e999}]',
    "not hexadecimal": b'[true, {"bytes": "zz"}]',
    "an exception that is none": b'[false, "x"]',
    "an exception of the wrong kind": b'[false, ["ExceptionGroup", "x"]]',
    "leaving by exception": b'[false, ["SystemExit", "0"]]',
    "not text": b"\x80abc",
}


def frame(data: bytes) -> str:
    """Returns a candidate that answers its loading, and every later request, with these bytes."""
    head = b"" if data.startswith(b"\xff") else len(data).to_bytes(8, "little")
    return f"""
import os, stat
message = {head + data!r}
if len(message) < 10000: message *= 3
for fd in range(3, 100):
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode): os.write(fd, message)
    except OSError: pass
def add(a, b): return 0
"""


# Attempts to reach anything outside. Each reports the actions that succeeded: there must be none.
REPORT = """
import os, socket, ctypes, errno
def add(a, b):
    raise Exception(repr(sorted(attempt())))
def allowed(actions):
    got = []
    for name, action in actions.items():
        try:
            got.append((name, str(action())))
        except (OSError, EOFError, ImportError) as error:
            pass
    return got
"""
ESCAPES = {
    "files": """
import posix
def attempt():
    path = {victim!r}
    return allowed(dict(
        unlink=lambda: posix.unlink(path),
        write=lambda: open(path, "w").write("x"),
        read=lambda: open(path).read(),
        passwd=lambda: open("/etc/passwd").read(),
        shadow=lambda: open("/etc/shadow").read(),
        home=lambda: os.listdir("/home"),
        usr=lambda: open("/usr/x", "w"),
        root=lambda: open("/x", "w"),
        sys=lambda: os.listdir("/sys"),
        dev=lambda: open("/dev/x", "w"),
        closed=lambda: os.listdir("/.closed"),
        link=lambda: os.link("/usr/bin/env", "/tmp/env"),
        node=lambda: os.mknod("/tmp/n", 0o20600, 0x101)))
""",
    "sockets": """
def connect(family, kind, address):
    s = socket.socket(family, kind); s.settimeout(1); s.connect(address); s.send(b"x")
def attempt():
    return allowed(dict(
        tcp=lambda: connect(2, 1, ("127.0.0.1", {port})),
        udp=lambda: connect(2, 2, ("192.0.2.1", 9)),
        tcp6=lambda: connect(10, 1, ("::1", {port})),
        unix=lambda: connect(1, 1, "\\0{abstract}"),
        vsock=lambda: socket.socket(40, 1),
        alg=lambda: socket.socket(38, 5),
        netlink=lambda: socket.socket(16, 3),
        packet=lambda: socket.socket(17, 3),
        raw=lambda: socket.socket(2, 3, 1),
        bluetooth=lambda: socket.socket(31, 3)))
""",
    "processes": """
import subprocess, multiprocessing
def attempt():
    libc = ctypes.CDLL(None, use_errno=True)
    def clone(flags):
        if libc.syscall(56, flags | 17, 0, 0, 0, 0) == -1: raise OSError(ctypes.get_errno(), "")
    fork = multiprocessing.get_context("fork")
    return allowed(dict(
        fork=os.fork,
        spawn=lambda: os.posix_spawn("/bin/true", ["true"], {{}}),
        run=lambda: subprocess.run(["/bin/true"]),
        execute=lambda: os.execv("/bin/true", ["true"]),
        process=lambda: fork.Process(target=print).start(),
        clone=lambda: clone(0),
        user=lambda: clone(0x10000000),
        system=lambda: os.system("true") == 0 or os.listdir("/nothing")))
""",
    "descriptors": """
import stat
def attempt():
    def kind(fd):
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode): raise OSError
        return oct(mode)
    return allowed({{str(fd): lambda fd=fd: kind(fd) for fd in range(3, 1024)}})
""",
    "environment": """
def attempt():
    ignored = ("LC_CTYPE", "LANG")
    return allowed({{k: lambda v=v: v for k, v in os.environ.items() if k not in ignored}})
""",
    "other processes": """
def attempt():
    def read(name): return open(f"/proc/{{name}}/cmdline").read()
    names = ["self", *map(str, range(1, 40))]
    opened = allowed({{"proc " + name: lambda name=name: read(name) for name in names}})
    return opened + [("listed", name) for name in os.listdir("/proc")]
""",
    "kernel": """
import platform
def attempt():
    libc = ctypes.CDLL(None, use_errno=True)
    calls = dict(
        unshare_user=(272, 0x10000000), unshare_mount=(272, 0x20000), setns=(308, 0, 0),
        mount=(165, b"none", b"/tmp", b"tmpfs", 0, 0), umount=(166, b"/tmp", 2),
        ptrace=(101, 16, 1, 0, 0), attach=(101, 0x4206, 1, 0, 0), io_uring=(425, 8, bytes(200)),
        keyctl=(250, 0, -3, 1), add_key=(248, b"user", b"x", b"y", 1, -3),
        bpf=(321, 0, bytes(64), 64), userfaultfd=(323, 1), perf=(298, bytes(128), 0, -1, -1, 0),
        vm_read=(310, 1, 0, 0, 0, 0, 0), open_tree=(428, -100, b"/", 1), fsopen=(430, b"tmpfs", 0),
        chroot=(161, b"/tmp"), setuid=(105, 0), pivot=(155, b".", b"."), memfd=(319, b"x", 0),
        shmget=(29, 0, 4096, 0o1600), msgget=(68, 0, 0o1600), clone3=(435, bytes(88), 88),
        module=(313, 0, b"", 0), hostname=(170, b"x", 1), open_by_handle=(304, 0, bytes(16), 0),
        x32=(0x40000000 + 39,))
    def call(arguments):
        if libc.syscall(*arguments) == -1: raise OSError(ctypes.get_errno(), "")
    if platform.machine() != "x86_64": return []
    return allowed({{name: lambda call_=call_: call(call_) for name, call_ in calls.items()}})
""",
    "expected values": """
import gc, re
def attempt():
    word = re.compile(b"MAR[K]-7000[7]")  # does not match itself
    pages = {{id(o) >> 12 for o in gc.get_objects()}}
    for value in list(gc.get_objects()):
        if type(value) is dict: value = list(value.values())
        if isinstance(value, (dict, list, tuple)):
            pages.update(id(item) >> 12 for item in value)
    end = ctypes.CDLL(None).sbrk; end.restype = ctypes.c_void_p
    top = end(0)
    pages.update(range((top - (1 << 19)) >> 12, top >> 12))
    def look(page):
        if not word.search(ctypes.string_at(page << 12, 4096)): raise OSError
    return allowed({{hex(page): lambda page=page: look(page) for page in pages}})
""",
}
