"""A model from the Hugging Face Hub; this needs network access to it."""

from pathlib import Path

from local_test.recipes.packages import CannotMake

# Weights as safetensors only: a .bin file is a pickle, and unpickling runs code of its author.
WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
NOT_WANTED = ["onnx/*", "openvino/*", "*.bin", "*/*"]  # the same weights for other engines


def model_name(hub_id: str) -> str:
    """The name of the directory and the model: the last part of the ID."""
    return hub_id.rstrip("/").rpartition("/")[2]


def make(directory: Path, cache: Path, hub_id: str) -> None:
    """Downloads a model's weights, configuration and tokenizer into its directory. Raises CannotMake."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        snapshot_download(hub_id, local_dir=directory, allow_patterns=WANTED, ignore_patterns=NOT_WANTED)
    except GatedRepoError as refused:
        raise CannotMake(f"{hub_id} is gated: accept its terms on the Hub, then set HF_TOKEN") from refused
    except RepositoryNotFoundError as missing:
        raise CannotMake(f"the Hub has no model {hub_id}, or HF_TOKEN has no access to it") from missing
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as failed:
        reason = str(failed).strip().splitlines()[0]
        raise CannotMake(
            f"cannot download {hub_id} ({reason}): can this machine reach huggingface.co? HF_ENDPOINT may name a mirror"
        ) from failed
    if not any(directory.glob("*.safetensors")):
        raise CannotMake(
            f"{hub_id} has no safetensors file at its root; pickles are not downloaded, convert the model first"
        )
