"""The environment of models' processes: variables by name. All others, credentials first, stay with the server.

The forkserver is started with the named variables only. A process that it forks inherits its memory, in which a
variable that was removed later could still be read.
"""

import re
from collections.abc import Iterable, Mapping

NAMED = frozenset(
    {
        *("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES", "VIRTUAL_ENV"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"),
        *("AWS_REGION", "AWS_DEFAULT_REGION", "MAX_CONTENT_LENGTH", "NLTK_DATA"),
    }
)
# Of the server's own settings, the platform, Python and the frameworks.
PREFIXES = (
    *("LC_", "SERVE_", "SAGEMAKER_", "SM_", "PYTHON", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "SENTENCE_TRANSFORMERS_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "NUMEXPR_", "NUMBA_", "MALLOC_", "JE_", "THP_", "ORT_"),
    *("TORCH", "PYTORCH_", "ATEN_", "DNNL_", "ONEDNN_", "TRITON_", "TF_", "XGBOOST_", "SKLEARN_", "JOBLIB_", "TQDM_"),
    *("CUDA", "CUBLAS_", "CUDNN_", "NCCL_", "NVIDIA_"),
)
SECRET = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|PRIVATE|APIKEY|KEY|AUTH|AUTHORIZATION|PAT)(_|$)", re.I
)
CREDENTIALS = re.compile(r"AWS_.*|HF_TOKEN(_PATH)?|HUGGING_FACE_HUB_TOKEN|HUGGINGFACE_HUB_TOKEN")
INSTALLING = re.compile(r"(PIP_|UV_).*|(https?|no|all)_proxy", re.I)  # pip's own


def named(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that every model's process has."""
    return {name: value for name, value in environ.items() if _is_named(name)}


def _is_named(name: str) -> bool:
    return name in NAMED or (name.startswith(PREFIXES) and not SECRET.search(name))


def allowed(environ: Mapping[str, str], names: Iterable[str], *, credentials: bool) -> dict[str, str]:
    """The further variables that a model has: `names`, in which a last `*` stands for any end, and credentials."""
    exact = {each for each in names if not each.endswith("*")}
    beginnings = tuple(each[:-1] for each in names if each.endswith("*"))
    return {
        name: value
        for name, value in environ.items()
        if name in exact
        or (beginnings and name.startswith(beginnings))
        or (credentials and CREDENTIALS.fullmatch(name))
    }


def for_installing(environ: Mapping[str, str]) -> dict[str, str]:
    """The further variables of pip's process: an index and its password, proxies."""
    return {name: value for name, value in environ.items() if INSTALLING.fullmatch(name)}


def withheld(environ: Mapping[str, str], given: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the server's variables that a model does not have."""
    return tuple(name for name in environ if name not in given and not _is_named(name))
