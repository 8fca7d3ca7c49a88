"""The model that X-Amzn-SageMaker-Custom-Attributes may name."""

from serve.web.invocations import in_attributes


def test_custom_attributes_may_name_the_model() -> None:
    """Beside whatever else callers put there."""
    assert in_attributes("trace=7,model_type=gpt2", "model_type") == "gpt2"
    assert in_attributes("model_type=gpt2; b=1", "model_type") == "gpt2"
    assert in_attributes("my_model_type=gpt2", "model_type") is None
    assert in_attributes("", "model_type") is None
