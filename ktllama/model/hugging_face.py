"""Models on the Hugging Face Hub: ``hf:OWNER/REPO`` and ``hf:OWNER/REPO:FILE.gguf``, perhaps with ``@REVISION``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from urllib.parse import quote

from ktllama.errors import ModelFileError
from ktllama.model import address as addresses
from ktllama.model import remote, split_files
from ktllama.model.address import Address
from ktllama.model.http_session import Session
from ktllama.model.model_file import ModelFile
from ktllama.model.wording import quoted

PREFIX = "hf:"
_MAX_LISTING_BYTES = 16 * 1024**2
_MAX_CANDIDATES = 20

_REFERENCE = re.compile(r"hf:(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?::(?P<file>[^@]+))?(?:@(?P<revision>.+))?", re.ASCII)
#: Files beside models that are GGUF and no models: image projectors, and importance matrices.
_NO_MODEL = re.compile(r"(.*/)?(mmproj|imatrix)[^/]*", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A repository, perhaps a file in it, or a part of a file's name such as ``Q4_K_M``."""

    text: str
    repository: str
    file: str | None
    revision: str = "main"


def parse(text: str) -> Reference:
    """Read ``hf:OWNER/REPO[:FILE][@REVISION]``.

    Raises:
        ModelFileError: for anything else.
    """
    found = _REFERENCE.fullmatch(text)
    if found is None or not text.isprintable():
        raise ModelFileError(quoted(text), "is no model; expected hf:OWNER/REPO, hf:OWNER/REPO:FILE.gguf or …@REVISION")
    return Reference(
        text=text,
        repository=f"{found['owner']}/{found['name']}",
        file=found["file"],
        revision=found["revision"] or "main",
    )


def read(session: Session, reference: Reference) -> ModelFile:
    """Read the header of the model; the repository's list of files is asked for where no file is named.

    Raises:
        ModelFileError: when it is not there, cannot be read, or is not the only one.
    """
    file = reference.file
    if file is None or not file.endswith(".gguf"):
        file = _chosen(reference, _files(session, reference))
    return remote.read(session, file_address(session, reference, file))


def file_address(session: Session, reference: Reference, file: str) -> Address:
    """Where the hub keeps a file of the repository."""
    revision = quote(reference.revision, safe="")
    return addresses.parse(f"{_hub(session)}/{reference.repository}/resolve/{revision}/{quote(file)}")


def config_address(session: Session, text: str) -> tuple[Address, str]:
    """Where the ``config.json`` of a model is, and the model's name if that says it.

    ``text`` is an address or ``hf:OWNER/REPO``.

    Raises:
        ModelFileError: for a reference to another file.
    """
    if not text.startswith(PREFIX):
        return remote.file_behind(session, addresses.parse(text)), ""
    reference = parse(text)
    file = reference.file or "config.json"
    if not file.endswith(".json"):
        raise ModelFileError(text, "is no config.json; expected hf:OWNER/REPO")
    return file_address(session, reference, file), reference.repository.rpartition("/")[2]


def _hub(session: Session) -> str:
    return session.access.hub.rstrip("/")


def _files(session: Session, reference: Reference) -> list[str]:
    revision = quote(reference.revision, safe="")
    url = f"{_hub(session)}/api/models/{reference.repository}/revision/{revision}"
    content = session.body(addresses.parse(url), _MAX_LISTING_BYTES, shown=reference.text)
    try:
        listing = json.loads(content)
        files = [entry["rfilename"] for entry in listing["siblings"]]
    except (ValueError, RecursionError, TypeError, KeyError):
        files = [None]
    if not all(isinstance(file, str) for file in files):
        raise ModelFileError(
            reference.text, "the hub's answer is not a list of files; name the file: hf:OWNER/REPO:FILE"
        )
    return files


def _chosen(reference: Reference, files: list[str]) -> str:
    models = sorted(file for file in files if file.endswith(".gguf") and not _NO_MODEL.fullmatch(file))
    if not models:
        raise ModelFileError(reference.text, "the repository has no GGUF file")
    first_files = [file for file in models if split_files.position(file.rpartition("/")[2])[0] == 1]
    wanted = (reference.file or "").lower()
    fitting = [file for file in first_files if wanted in file.lower()]
    if len(fitting) == 1:
        return fitting[0]
    shown = [quoted(file) for file in (fitting or first_files)[:_MAX_CANDIDATES]]
    more = len(fitting or first_files) - len(shown)
    what = f"{len(fitting)} models fit" if fitting else f"no model of the {len(first_files)} there fits"
    raise ModelFileError(
        reference.text,
        f"{what}; name one, as in hf:{reference.repository}:FILE.gguf: "
        + ", ".join(shown)
        + (f" and {more} more" if more else ""),
    )
