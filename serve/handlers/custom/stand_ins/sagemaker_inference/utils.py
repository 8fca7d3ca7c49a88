"""parse_accept(header) -> its media types in the order of the header, without parameters."""


def parse_accept(accept: str) -> list[str]:
    return [part.partition(";")[0].strip() for part in accept.split(",")]
