"""What comes in from outside: locked packages, no network, no code out of data."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ewq_gguf"
LOCKS = sorted((ROOT / "third_party").glob("*.lock"))
_REQUIREMENT = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^\s;]+)(?: ; ([^\\]+?))? \\$", re.MULTILINE)
_HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(path: Path) -> dict[str, set[str]]:
    """Versions by name."""
    found: dict[str, set[str]] = {}
    for name, version, _ in _REQUIREMENT.findall(path.read_text(encoding="utf-8")):
        found.setdefault(normal(name), set()).add(version)
    return found


@pytest.mark.parametrize("path", LOCKS, ids=lambda p: p.name)
def test_every_locked_package_has_hashes(path: Path) -> None:
    """Nothing but pinned requirements and hashes: no index, no option, no path."""
    hashes = 1
    for line in path.read_text(encoding="utf-8").splitlines():
        if _REQUIREMENT.match(line):
            assert hashes, f"no hash before {line}"
            hashes = 0
        else:
            assert _HASH.match(line), line
            hashes += 1
    assert hashes


def test_the_lock_holds_what_development_asks_for() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = {
        normal(re.split(r"[ <>=!~;\[]", r)[0])
        for r in [*project["dependencies"], *extras["dev"], *extras["plot"]]
    }
    development = locked(ROOT / "third_party" / "development.lock")
    native = locked(ROOT / "third_party" / "native.lock")
    assert native.keys() == {"llama-cpp-python"}
    assert asked <= development.keys() | native.keys()
    # What the native library's own installation would fetch is there too.
    assert {"jinja2", "diskcache", "typing-extensions"} <= development.keys()


def test_the_lock_and_the_constraints_agree() -> None:
    constraints = re.findall(
        r"^([\w.-]+)==([^\s;]+)",
        (ROOT / "third_party" / "constraints.txt").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert constraints
    versions = {
        **locked(ROOT / "third_party" / "development.lock"),
        **locked(ROOT / "third_party" / "native.lock"),
    }
    for name, version in constraints:
        assert version in versions[normal(name)], name


# Run in a child: whatever would reach for the network, by name or by address, is an error.
_NO_NETWORK = """
import socket, sys
class Blocked(AssertionError):
    pass
def refuse(*arguments, **options):
    raise Blocked(f"the network was asked for: {arguments[:2]}")
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "create_connection", "create_server"):
    setattr(socket, name, refuse)
class NoSocket(socket.socket):
    __init__ = refuse
socket.socket = NoSocket
socket.socketpair = refuse
def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise Blocked(f"{event}{arguments}")
    if event in ("urllib.Request", "http.client.connect", "ftplib.connect", "smtplib.connect"):
        raise Blocked(f"{event}{arguments}")
sys.addaudithook(watch)
"""


def without_network(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _NO_NETWORK + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_block_blocks() -> None:
    for program in (
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import socket; socket.socket()",
        "import _socket; _socket.getaddrinfo('localhost', 80)",
        "import _socket; _socket.socket().connect(('127.0.0.1', 9))",
        "import urllib.request; urllib.request.urlopen('http://localhost:9/')",
    ):
        done = without_network(program)
        assert done.returncode == 1
        assert "Blocked" in done.stderr


def test_no_module_reaches_for_the_network_when_imported() -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py") and not path.stem.endswith("_child")
    )
    assert len(modules) > 100
    done = without_network(f"import importlib\nfor name in {modules!r}:\n    importlib.import_module(name)\n")
    assert done.returncode == 0, done.stderr


def test_convert_of_a_local_folder_asks_nobody(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    done = without_network(
        "import sys\nfrom ewq_gguf.cli import main\nmain()\n",
        "convert", str(reference), "-o", str(out), "--type", "Q8_0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert out.is_file()


_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "marshal",
    "shelve",
    "code",
    "codeop",
    "runpy",
    "telnetlib",
    "xmlrpc",
    "imp",
}
_UNSAFE_TEMPLATES = {"Environment", "NativeEnvironment", "Template", "NativeTemplate"}
_SHELLS = {("os", "system"), ("os", "popen"), ("subprocess", "getoutput"), ("subprocess", "getstatusoutput")}
# Messages between a run and the processes it has started itself, over pipes nobody else holds.
_PIPES = PACKAGE / "allocation" / "workers.py"


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def findings(tree: ast.AST) -> list[str]:
    """Ways in which data could become code."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in _MODULES]
            found += [a.name for a in node.names if a.name.split(".")[0] in ("torch", "transformers")]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] in {*_MODULES, "torch", "transformers", "yaml"}:
                found.append(node.module)
            if node.module.split(".")[0] == "jinja2" and node.module != "jinja2.sandbox":
                found += [f"jinja2.{a.name}" for a in node.names if a.name in _UNSAFE_TEMPLATES]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "jinja2" and node.attr in _UNSAFE_TEMPLATES:
                found.append(f"jinja2.{node.attr}")
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in _CALLS:
                found.append(called.id)
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                if (called.value.id, called.attr) in _SHELLS:
                    found.append(f"{called.value.id}.{called.attr}")
                if called.value.id == "yaml" and called.attr in ("load", "load_all") and not _is_safe(node):
                    found.append("yaml.load")
            for keyword in node.keywords:
                value = keyword.value
                if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and not (
                    isinstance(value, ast.Constant) and value.value is False
                ):
                    found.append(f"{keyword.arg}=")
    return found


def _is_safe(call: ast.Call) -> bool:
    """Whether every loader that may be taken is a safe one."""
    loaders = [k.value for k in call.keywords if k.arg == "Loader"]
    names = [n.attr for loader in loaders for n in ast.walk(loader) if isinstance(n, ast.Attribute)]
    return bool(names) and all(n in ("SafeLoader", "CSafeLoader") for n in names)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "eval('1')", "exec(x)", "import jinja2\njinja2.Template(x)",
        "from jinja2 import Template", "import os\nos.system(x)", "subprocess.run(x, shell=True)",
        "np.load(x, allow_pickle=True)", "yaml.load(x)", "yaml.load(x, Loader=yaml.FullLoader)", "import torch",
    ],
)  # fmt: skip
def test_the_search_finds(code: str) -> None:
    assert findings(ast.parse(code))


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_data_becomes_code(path: Path) -> None:
    found = findings(ast.parse(path.read_text(encoding="utf-8")))
    if path == _PIPES:
        assert set(found) == {"pickle"}
    else:
        assert found == []


def test_messages_between_processes_come_from_our_own_pipes() -> None:
    """The one use of pickle: what is loaded was read from the standard streams of parent and child."""
    tree = ast.parse(_PIPES.read_text(encoding="utf-8"))
    loads = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("loads", "load")
    ]
    assert [ast.unparse(node.args[0]) for node in loads] == ["stream.read(_LENGTH.unpack(head)[0])", "packed"]
    assert not any(isinstance(n, ast.Attribute) and n.attr in ("open", "read_bytes") for n in ast.walk(tree))
