"""A name or a path of a checkpoint -> a local folder, downloaded once into the Hugging Face cache.

Only the files that loading needs are downloaded, with one format of weights, into the cache's own layout
(`blobs/`, `snapshots/`, `refs/`), so that other programs on the machine find them and theirs are found here.
Nothing that a hub sends is executed; file names are chosen from fixed lists, never taken as they come.

`paddlemix/llava/*` stands for the same weights under `liuhaotian/*`, from which those were converted: the
server that keeps them neither lists its files nor tells their checksums, so a download could not be verified.
"""

from __future__ import annotations

import errno
import os
import re
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from paddle_llava import __version__
from paddle_llava.errors import LlavaError, did_you_mean
from paddle_llava.transfer import RemoteFile, fill_snapshot

PUBLISHED = (
    "liuhaotian/llava-v1.5-7b",
    "liuhaotian/llava-v1.5-13b",
    "liuhaotian/llava-v1.6-vicuna-7b",
    "liuhaotian/llava-v1.6-vicuna-13b",
    "llava-hf/llava-1.5-7b-hf",
    "llava-hf/llava-1.5-13b-hf",
    "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-hf/llava-v1.6-vicuna-13b-hf",
)
OWN = {"street": Path(__file__).parent / "demo" / "street_model"}  # comes with the package
PADDLE_NAMES = {f"paddlemix/llava/{name.partition('/')[2]}": name for name in PUBLISHED[:4]}
PADDLE_NAMES["paddlemix/llava/llava-v1.6-7b"] = "liuhaotian/llava-v1.6-vicuna-7b"

TOWER_FILES = ("config.json", "preprocessor_config.json")
CHECKPOINT_FILES = (
    *TOWER_FILES,
    "generation_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",  # the Paddle layout's name of tokenizer.model
)
WEIGHTS = (("model", ".safetensors"), ("pytorch_model", ".bin"), ("model_state", ".pdparams"))

_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


class Unreachable(LlavaError):
    """The hub does not answer, or must not be asked, and the cache has no copy."""


def local_folder(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    progress: bool = True,
    text_only: bool = False,
    weights: bool = True,
) -> Path:
    """The folder of a LLaVA checkpoint: `name_or_path` itself if it is one, else its download.

    `revision` is a branch, tag or commit of a hub name (default `main`); a folder has none. `HF_ENDPOINT`,
    `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` and `HF_TOKEN` mean what they mean to `huggingface_hub`, also
    when they are set after its import. With `progress`, a warning and a bar on stderr while something is
    downloaded. `text_only` allows Vicuna alone, from which a LLaVA is trained. Without `weights` a download is of the
    few megabytes beside them, which a later call completes. Raises `LlavaError` when the checkpoint cannot be had,
    `Unreachable` for want of a connection.
    """
    if folder := _existing(name_or_path) or OWN.get(str(name_or_path)):
        return folder
    name = str(name_or_path)
    if vicuna := re.fullmatch(r"(?:paddlemix/llava|lmsys)/(vicuna-.*)", name):
        if not text_only:
            raise LlavaError(f"{name!r}: Vicuna alone, a text model that sees no images; give a LLaVA checkpoint")
        name = f"lmsys/{vicuna[1]}"
    return _from_hub(name, revision, CHECKPOINT_FILES, progress, weights)


def tower_folder(name_or_path: str | Path, *, progress: bool = True, weights: bool = True) -> Path:
    """The same for a separate CLIP vision tower, such as `openai/clip-vit-large-patch14-336`."""
    return _existing(name_or_path) or _from_hub(str(name_or_path), None, TOWER_FILES, progress, weights)


def weight_files(names: set[str]) -> list[str]:
    """Of the file `names` of a folder, one whole set of weights: the best format there is, with its index.

    Safetensors before PyTorch's before Paddle's; a single file before shards; empty when no set is whole.
    """
    for stem, suffix in WEIGHTS:
        if f"{stem}{suffix}" in names:
            return [f"{stem}{suffix}"]
        shard = re.compile(rf"{stem}-\d{{5}}-of-(\d{{5}}){re.escape(suffix)}")
        for total in sorted({found[1] for name in names if (found := shard.fullmatch(name))}):
            shards = [f"{stem}-{i:05}-of-{total}{suffix}" for i in range(1, int(total) + 1)]
            if shards and names.issuperset(shards):
                return [name for name in (f"{stem}{suffix}.index.json", *shards) if name in names]
    return []


def _existing(name_or_path: str | Path) -> Path | None:
    path = os.path.expanduser(name_or_path)
    if os.path.isdir(path):
        if not any(os.path.isfile(os.path.join(path, name)) for name in ("config.json", "processor_config.json")):
            raise LlavaError(f"{path!r}: this folder has no config.json, so it is not a checkpoint")
        return Path(path)
    if os.path.exists(path):
        raise LlavaError(f"{path!r}: a file; give the folder that holds config.json and the weights")
    if isinstance(name_or_path, Path):
        raise LlavaError(f"{path!r}: no such folder")
    return None


def _from_hub(name: str, revision: str | None, companions: tuple[str, ...], progress: bool, weights: bool) -> Path:
    from huggingface_hub.errors import HTTPError

    repo, revision = _repository(name), revision or "main"
    if not re.fullmatch(r"\w[\w./-]*", revision) or ".." in revision:
        raise LlavaError(f"{revision!r}: not a revision; give a branch, a tag or a commit of {repo}")
    endpoint, home = hub_endpoint(), cache_folder() / f"models--{repo.replace('/', '--')}"
    try:
        commit, files = _listing(repo, revision, endpoint, companions, weights)
    except (HTTPError, OSError) as error:
        cached = _cached(repo, revision, home.parent, weights) if _is_outage(error) else None
        if cached is None:
            raise _explanation(error, repo, revision, endpoint, home.parent) from error
        if not is_offline():
            _say(f"{repo}: no answer from {endpoint} ({_brief(error)}); using the copy in the cache")
        return cached
    snapshot = home / "snapshots" / commit
    try:
        fill_snapshot(snapshot, files, _headers(), progress)
    except (HTTPError, OSError) as error:
        raise _explanation(error, repo, revision, endpoint, home.parent) from error
    if revision != commit:
        with suppress(OSError):  # a cache that cannot be written to serves all the same
            # A copy without weights does not take the place of a whole one.
            if weights or not _cached(repo, revision, home.parent, weights=True):
                _remember(home / "refs" / revision, commit)
    return snapshot


def _repository(name: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if name in PADDLE_NAMES:
        _say(f"{name}: using the same weights under their Hugging Face name, {PADDLE_NAMES[name]}")
        return PADDLE_NAMES[name]
    with suppress(HFValidationError):
        validate_repo_id(name)
        if "/" in name and name.isprintable():
            return name
    raise LlavaError(f"{name!r}: no such folder, nor a hub name of the form owner/name{_suggestion(name)}")


def _suggestion(name: str) -> str:
    known = (*PUBLISHED, *PADDLE_NAMES)
    of_another_owner = [other for other in known if Path(other).name == Path(name).name]
    return "" if name in known else did_you_mean(name, of_another_owner or known)


def _listing(
    repo: str, revision: str, endpoint: str, companions: tuple[str, ...], weights: bool
) -> tuple[str, list[RemoteFile]]:
    """The commit of `revision` and the files to have of it; one request.

    `config.json` comes after its `companions`, and the `weights` after that: what is there tells what is whole.
    """
    from huggingface_hub import HfApi, constants, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if is_offline():
        raise OfflineModeIsEnabled
    api = HfApi(endpoint=endpoint, token=False, headers=_headers())
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
        listed = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        tensors = weight_files(set(listed))
        commit, files = str(info.sha), []
        for name in [name for name in reversed(companions) if name in listed] + tensors * weights:
            file, url = listed[name], hf_hub_url(repo, name, revision=commit, endpoint=endpoint)
            size, checksum = (file.lfs.size, file.lfs.sha256) if file.lfs else (file.size, file.blob_id)
            files.append(RemoteFile(repo, name, url, int(-1 if size is None else size), str(checksum)))
    except HfHubHTTPError:  # of which some are a ValueError
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LlavaError(f"{endpoint}: does not answer as a Hugging Face hub does; check HF_ENDPOINT") from error
    if "config.json" not in listed or not tensors:
        raise LlavaError(
            f"{repo}: not a checkpoint; it lacks config.json, or a whole set of model*.safetensors, "
            "pytorch_model*.bin or model_state*.pdparams"
        )
    digests = (commit, *(file.checksum for file in files))  # they become names in the cache
    if min(file.size for file in files) < 0 or not all(_DIGEST.fullmatch(digest) for digest in digests):
        raise LlavaError(f"{endpoint}: does not tell the sizes and checksums of {repo}; check HF_ENDPOINT")
    return commit, files


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(library_name="paddle-llava", library_version=__version__)
    token = headers.get("authorization", "")
    if not (token.isascii() and token.isprintable()):  # the network's own error would show the token
        raise LlavaError("the access token has characters that no token has; correct HF_TOKEN")
    return headers


def _remember(ref: Path, commit: str) -> None:
    """Write down what a branch or tag means now, for the day without a network."""
    if ref.is_file() and ref.read_text() == commit:
        return
    ref.parent.mkdir(parents=True, exist_ok=True)
    fresh = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
    fresh.write_text(commit)
    os.replace(fresh, ref)


def _cached(repo: str, revision: str, cache_folder: Path, weights: bool) -> Path | None:
    """The snapshot of `revision` in the cache, if all is there: the weights are downloaded last, or `config.json`."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", cache_dir=cache_folder, revision=revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    whole = not weights or weight_files({path.name for path in folder.iterdir() if path.is_file()})
    return folder if whole else None


def is_offline() -> bool:
    from huggingface_hub import constants

    switches = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return constants.HF_HUB_OFFLINE or any(value.upper() in ("1", "ON", "YES", "TRUE") for value in switches)


def cache_folder() -> Path:
    from huggingface_hub import constants

    folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not folder and os.environ.get("HF_HOME"):
        folder = os.path.join(os.environ["HF_HOME"], "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder or constants.HF_HUB_CACHE))).absolute()


def hub_endpoint() -> str:
    from huggingface_hub import constants

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    with suppress(ValueError):  # a port that is no number
        address = urlsplit(endpoint)
        if address.scheme in ("http", "https") and address.hostname and address.port != 0:
            return endpoint
    raise LlavaError(f"HF_ENDPOINT={endpoint!r}: not a web address such as https://huggingface.co")


def _is_outage(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, (HTTPError, ConnectionError))  # offline mode is a ConnectionError


def _explanation(error: Exception, repo: str, revision: str, endpoint: str, cache_folder: Path) -> LlavaError:
    """What a person can do about a failure of the library, the network or the disk."""
    from huggingface_hub import errors

    login = "set HF_TOKEN or run `hf auth login`"
    match error:
        case errors.OfflineModeIsEnabled():
            text = f"no such folder, nor in the cache {str(cache_folder)!r}; unset HF_HUB_OFFLINE to download"
        case errors.GatedRepoError():
            text = f"access is restricted; ask for it at {endpoint}/{repo}, then {login}"
        case errors.RepositoryNotFoundError():
            text = f"no such folder, nor such a model at {endpoint}{_suggestion(repo)}; if private, {login}"
        case errors.RevisionNotFoundError():
            text = f"has no branch, tag or commit {revision!r}"
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            text = f"{endpoint} does not accept the access token; correct HF_TOKEN or run `hf auth login`"
        case errors.HfHubHTTPError():
            text = f"{endpoint} answers with {_brief(error)}; try again later, or check HF_ENDPOINT"
        case errors.HTTPError():
            text = (
                f"no such folder, nor in the cache, and no connection to {endpoint} ({_brief(error)}); "
                "check the network, or set HF_ENDPOINT to a mirror"
            )
        case OSError(errno=errno.ENOSPC):
            text = f"no room in the cache {str(cache_folder)!r} ({_brief(error)}); free some or change HF_HOME"
        case _:
            text = f"cannot use the cache {str(cache_folder)!r} ({_brief(error)}); change HF_HOME"
    return (Unreachable if _is_outage(error) else LlavaError)(f"{repo}: {text}")


def _brief(error: Exception) -> str:
    if hasattr(error, "response"):
        return f"HTTP status {error.response.status_code}"
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:120] or type(error).__name__


@cache
def _say(message: str) -> None:
    """A note in the command line, a warning in Python; once."""
    warnings.warn(message, stacklevel=2)
