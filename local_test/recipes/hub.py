"""A model from the Hugging Face Hub, for machines that can reach it."""

from pathlib import Path

from local_test.recipes.packages import CannotMake

# Weights as safetensors only: a .bin file is a pickle, and unpickling runs whatever its author wrote.
WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
NOT_WANTED = ["onnx/*", "openvino/*", "*.bin", "*/*"]  # the same weights again, for other engines


def model_name(hub_id: str) -> str:
    """The last part of the ID is the name of the directory, and so of the model."""
    return hub_id.rstrip("/").rpartition("/")[2]


def make(directory: Path, cache: Path, hub_id: str) -> None:
    """Download one model's weights, configuration and tokenizer into its directory."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        snapshot_download(hub_id, local_dir=directory, allow_patterns=WANTED, ignore_patterns=NOT_WANTED)
    except GatedRepoError as refused:
        raise CannotMake(f"{hub_id} is gated: accept its terms on the Hub, then set HF_TOKEN") from refused
    except RepositoryNotFoundError as missing:
        raise CannotMake(f"the Hub has no model {hub_id}, or HF_TOKEN may not see it") from missing
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as failed:
        reason = str(failed).strip().splitlines()[0]
        raise CannotMake(
            f"cannot download {hub_id} ({reason}): can this machine reach huggingface.co? HF_ENDPOINT may name a mirror"
        ) from failed
    if not any(directory.glob("*.safetensors")):
        raise CannotMake(f"{hub_id} has no safetensors file at its root; convert it first, pickles are not downloaded")
