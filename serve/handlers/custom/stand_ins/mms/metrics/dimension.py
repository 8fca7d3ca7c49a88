"""Dimension(name, value): a label of a metric."""


class Dimension:
    def __init__(self, name: str, value: object) -> None:
        self.name = name
        self.value = value

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"
