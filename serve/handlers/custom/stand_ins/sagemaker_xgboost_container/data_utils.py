"""The formats of a Content-Type."""

CSV, LIBSVM, PARQUET, RECORDIO_PROTOBUF = "csv", "libsvm", "parquet", "recordio-protobuf"
_NAMES = {
    "csv": CSV,
    "text/csv": CSV,
    "libsvm": LIBSVM,
    "text/libsvm": LIBSVM,
    "text/x-libsvm": LIBSVM,
    "parquet": PARQUET,
    "application/x-parquet": PARQUET,
    "recordio-protobuf": RECORDIO_PROTOBUF,
    "application/x-recordio-protobuf": RECORDIO_PROTOBUF,
}


def get_content_type(content_type_cfg_val: str | None) -> str:
    """One of the four names above; libsvm for None. Raises ValueError for an unknown type."""
    if content_type_cfg_val is None:
        return LIBSVM
    media_type = content_type_cfg_val.partition(";")[0].strip().lower()
    if media_type not in _NAMES:
        raise ValueError(f"unsupported content type {content_type_cfg_val!r}; use one of {', '.join(_NAMES)}")
    return _NAMES[media_type]
