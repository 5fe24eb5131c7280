"""Makes .venv: the package in editable form, its dependencies, and the developers' tools.

Called by the Makefile with a suitable Python; standard library only. uv (kept in .uv) does the
installing, because it fetches in parallel and shares files between environments; it reads none of
pip's settings, so these are translated for it. Where uv cannot be had, pip does the same.
"""

import argparse
import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

ROOT = Path(__file__).resolve().parent.parent
UV_ENV = ROOT / ".uv"
ENV = ROOT / ".venv"
CONSTRAINTS = ROOT / "constraints" / "torchforce.txt"
INPUTS = [ROOT / "setup.py", CONSTRAINTS, Path(__file__).resolve()]
# Inside .venv and written last: clearing or interrupting an installation leaves no stamp.
STAMP = ENV / "bootstrap-stamp"
REQUIREMENT = ".[torchforce,dev]"

# ---------------------------------------------------------------- pip's settings, for uv

PIP_ALIASES = {"default-timeout": "timeout", "pypi-url": "index-url"}
# uv's variables of the same meaning: if the user set any of them, none is derived from pip's.
UV_SYNONYMS = {
    "UV_DEFAULT_INDEX": ["UV_INDEX_URL"],
    "UV_INDEX": ["UV_EXTRA_INDEX_URL"],
    "UV_HTTP_TIMEOUT": ["UV_REQUEST_TIMEOUT", "HTTP_TIMEOUT"],
    "ALL_PROXY": ["all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"],
}


def parse_pip_config(listing: str) -> dict[str, dict[str, str]]:
    """Section -> name -> value, from the output of `pip config list`."""
    sections: dict[str, dict[str, str]] = {}
    for line in listing.splitlines():
        match = re.fullmatch(r"(.+?)\.([^.=]+)=(.+)", line)
        if match:
            section, name, value = match.groups()
            sections.setdefault(section, {})[name] = ast.literal_eval(value)
    return sections


def install_settings(sections: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What `pip install` would use: its own section beats the global one, PIP_* beat both."""
    return {
        PIP_ALIASES.get(name, name): value
        for section in ("global", "install", ":env:")
        for name, value in sections.get(section, {}).items()
        if value.strip()
    }


def local_path(location: str) -> Path | None:
    """The path that an index or find-links entry names, None for something remote."""
    if location.startswith("file:"):
        return Path(url2pathname(urlsplit(location).path))
    return None if "://" in location else Path(location).expanduser()


def present(locations: str) -> list[str]:
    """The entries of a setting less those missing here: pip passes over them, uv would stop."""
    paths = [(location, local_path(location)) for location in locations.split()]
    return [location for location, path in paths if path is None or path.exists()]


def uv_settings(
    settings: Mapping[str, str], environ: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Environment variables and arguments that make uv follow pip's settings.

    Variables that are set in `environ` are left out: whoever set them meant uv.
    """
    default = present(settings.get("index-url", ""))
    indexes = present(settings.get("extra-index-url", ""))
    no_index = settings.get("no-index", "").lower() in {"1", "true", "t", "yes", "y", "on"}
    if "index-url" in settings and not default:
        # A local index that is absent must not open the way to the public one.
        default, indexes = indexes[:1], indexes[1:]
        no_index = no_index or not default

    links = [
        location if (path := local_path(location)) is None else str(path.absolute())
        for location in present(settings.get("find-links", ""))
    ]
    timeout = settings.get("timeout")
    derived = {
        "UV_DEFAULT_INDEX": " ".join(default),
        "UV_INDEX": " ".join(indexes),
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # pip's: the best version of all the indexes
        "UV_FIND_LINKS": ",".join(links),
        "UV_INSECURE_HOST": " ".join(settings.get("trusted-host", "").split()),
        "UV_HTTP_TIMEOUT": str(int(float(timeout))) if timeout else "",
        "SSL_CERT_FILE": settings.get("cert", ""),
        "ALL_PROXY": settings.get("proxy", ""),
        "UV_PYTHON_DOWNLOADS": "never",  # the Python is chosen already
    }
    environment = {
        name: value
        for name, value in derived.items()
        if value and not any(key in environ for key in [name, *UV_SYNONYMS.get(name, [])])
    }
    # uv has no variable for it.
    return environment, ["--no-index"] if no_index else []


# ---------------------------------------------------------------- the environments


def say(message: str) -> None:
    """Progress goes to stderr: stdout belongs to what make was asked for."""
    print(message, file=sys.stderr, flush=True)


def run(*command: object, env: Mapping[str, str] | None = None) -> None:
    """Run a command in the repository's root, its chatter on stderr."""
    arguments = [str(part) for part in command]
    subprocess.run(arguments, cwd=ROOT, env=env, stdout=sys.stderr, check=True)


def output(*command: object, env: Mapping[str, str] | None = None) -> str:
    """A command's standard output; on failure the error holds both streams."""
    arguments = [str(part) for part in command]
    return subprocess.run(
        arguments, cwd=ROOT, env=env, capture_output=True, text=True, check=True
    ).stdout


def uv_works() -> bool:
    """Whether .uv is there, whole, and its Python still exists."""
    try:
        output(UV_ENV / "bin" / "python", "-m", "uv", "--version")
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def prepare_uv() -> bool:
    """Make .uv with uv in it if need be; whether that went well."""
    if uv_works():
        return True
    run(sys.executable, "-m", "venv", "--clear", UV_ENV)
    try:
        output(UV_ENV / "bin" / "python", "-m", "pip", "install", "uv>=0.8")
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or "no reason given").splitlines()[-1]
        say(f"uv could not be installed ({reason}); using pip, which takes longer")
        return False
    return uv_works()


def make(env: Path, arguments: list[object], run: Callable[..., object] = run) -> None:
    """Make an environment anew and fill it, by uv if it can be had.

    Args:
        env: its folder.
        arguments: of ``pip install``, such that uv knows them too.
        run: what runs the commands.

    Raises:
        subprocess.CalledProcessError: if that fails.
    """
    if prepare_uv():
        install_with_uv(env, arguments, run)
    else:
        run(sys.executable, "-m", "venv", "--clear", env)
        run(env / "bin" / "python", "-m", "pip", "install", *arguments)


def install_with_uv(env: Path, arguments: list[object], run: Callable[..., object] = run) -> None:
    """Make an environment anew and fill it, by uv under pip's settings."""
    python = UV_ENV / "bin" / "python"
    listing = output(python, "-m", "pip", "config", "list")
    settings, more = uv_settings(install_settings(parse_pip_config(listing)), os.environ)
    variables = {**os.environ, **settings}
    uv = [python, "-m", "uv"]
    run(*uv, "venv", "--quiet", "--clear", "--python", sys.executable, env, env=variables)
    target = ["--python", env / "bin" / "python"]
    run(*uv, "pip", "install", *more, *target, *arguments, env=variables)


def expected_stamp() -> list[str]:
    """What .venv is made from (its place too: environments cannot be moved), and which Python."""
    digest = hashlib.sha256(bytes(ROOT))
    for path in INPUTS:
        digest.update(path.read_bytes())
    return [digest.hexdigest(), "{}.{}".format(*sys.version_info)]


def is_current(exact: bool) -> bool:
    """Whether .venv is complete and made from the present inputs (`exact`: and this Python)."""
    if not (STAMP.exists() and (ENV / "bin" / "python").exists()):
        return False
    found, expected = STAMP.read_text().split(), expected_stamp()
    return found == expected if exact else found[:1] == expected[:1]


def build_hint() -> str:
    """What the only source distribution among the dependencies, ParmEd, lacks on this machine."""
    missing = [] if shutil.which("g++") else ["g++"]
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append(f"the headers of {sys.executable} (Python.h)")
    return f"; building ParmEd needs {' and '.join(missing)}" if missing else ""


def main() -> int | str:
    """Bring .venv up to date; the exit status, or one line on what went wrong."""
    parser = argparse.ArgumentParser(description="Bring .venv up to date.")
    parser.add_argument("--exact", action="store_true", help="with this Python and no other")
    if is_current(parser.parse_args().exact):
        return 0
    say("Making .venv (the first time this downloads about 3 GB, torch with its CUDA libraries)")
    try:
        make(ENV, ["-c", CONSTRAINTS, "-e", REQUIREMENT])
    except subprocess.CalledProcessError as error:
        return f"Making .venv failed: {' '.join(error.cmd)}{build_hint()}"
    except KeyboardInterrupt:
        return "Making .venv was interrupted; the next make starts over"
    STAMP.write_text("\n".join(expected_stamp()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
