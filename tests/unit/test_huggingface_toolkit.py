"""decoder_encoder of AWS's Hugging Face toolkit, as model code imports it, compared with that of its release 2.6.0.

The expected values are what `sagemaker_huggingface_inference_toolkit.decoder_encoder` of the release returned.
"""

import json
from typing import Any

import numpy as np
import pytest

from serve.handlers.custom import toolkits
from serve.http.media import CSV, JSON

toolkits.install()

from mms.service import PredictionException  # noqa: E402  # a stand-in, found once they are installed
from sagemaker_huggingface_inference_toolkit import decoder_encoder  # noqa: E402

DECODED: list[tuple[str, str, Any]] = [
    ('{"inputs":"a"}', JSON, {"inputs": "a"}),
    ('{"inputs":["a","b"],"parameters":{"top_k":2}}', JSON, {"inputs": ["a", "b"], "parameters": {"top_k": 2}}),
    ("[1,2.5,null,true]", JSON, [1, 2.5, None, True]),
    ('"text"', JSON, "text"),
    ("1", JSON, 1),
    ('{"a":{"b":["中"]}}', JSON, {"a": {"b": ["中"]}}),
    ("[]", JSON, []),
    ('{"n":12345678901234567890123}', JSON, {"n": 12345678901234567890123}),
    ('{"a":1,"a":2}', JSON, {"a": 2}),
    (' {"inputs":"x"}\n', JSON, {"inputs": "x"}),
    ("inputs\nI love it\nI hate it\n", CSV, {"inputs": ["I love it", "I hate it"]}),
    ('inputs\n"a, b"\n"c\nd"\n', CSV, {"inputs": ["a, b", "c\nd"]}),
    (
        'question,context\nWho?,Me\nWhat?,"a, b"\n',
        CSV,
        {"inputs": [{"question": "Who?", "context": "Me"}, {"question": "What?", "context": "a, b"}]},
    ),
    ("inputs,other\na,b\n", CSV, {"inputs": ["a"]}),
    ("question,context,id\nq,c,1\n", CSV, {"inputs": [{"question": "q", "context": "c", "id": "1"}]}),
    ("inputs\n\nx\n", CSV, {"inputs": ["x"]}),
    ("inputs\r\na\r\nb\r\n", CSV, {"inputs": ["a", "b"]}),
    ("context,question\nc,q\n", CSV, {"inputs": [{"context": "c", "question": "q"}]}),
    ("question\nq\n", CSV, {"inputs": [{"question": "q"}]}),
]
ENCODED: list[tuple[Any, str, str]] = [
    ([{"label": "POS", "score": 0.5}], JSON, '[{"label":"POS","score":0.5}]'),
    ([{"label": "POS", "score": 0.5}], CSV, "label,score\r\nPOS,0.5\r\n"),
    (
        [{"label": "a", "score": 1}, {"label": "b", "score": 0.25}],
        JSON,
        '[{"label":"a","score":1},{"label":"b","score":0.25}]',
    ),
    ([{"label": "a", "score": 1}, {"label": "b", "score": 0.25}], CSV, "label,score\r\na,1\r\nb,0.25\r\n"),
    ({"label": "x"}, JSON, '{"label":"x"}'),
    ({"a": [1, 2]}, JSON, '{"a":[1,2]}'),
    ([[{"a": 1}]], JSON, '[[{"a":1}]]'),
    (["x"], JSON, '["x"]'),
    ("text", JSON, '"text"'),
    (1.5, JSON, "1.5"),
    ([], JSON, "[]"),
    (None, JSON, "null"),
    (True, JSON, "true"),
    ([{"w": "中文"}], JSON, '[{"w":"中文"}]'),
    ([{"w": "中文"}], CSV, "w\r\n中文\r\n"),
    ({"f": np.float32(0.1)}, JSON, '{"f":0.10000000149011612}'),
    ({"i": np.int64(3)}, JSON, '{"i":3}'),
    (np.array([0, 1, 2, 3]), JSON, "[0,1,2,3]"),
    (np.array([[1.5, 2.0]]), JSON, "[[1.5,2.0]]"),
    ([np.float64(1.25)], JSON, "[1.25]"),
    ([{"label": "a, b", "score": 1e-07}], JSON, '[{"label":"a, b","score":1e-07}]'),
    ([{"label": "a, b", "score": 1e-07}], CSV, 'label,score\r\n"a, b",1e-07\r\n'),
    ([{"label": 'q"', "score": 123456789.0}], JSON, '[{"label":"q\\"","score":123456789.0}]'),
    ([{"label": 'q"', "score": 123456789.0}], CSV, 'label,score\r\n"q""",123456789.0\r\n'),
    ([{"a": None}], JSON, '[{"a":null}]'),
    ([{"a": None}], CSV, 'a\r\n""\r\n'),
    ([{"a": 1}, {"a": 2, "b": 3}], JSON, '[{"a":1},{"a":2,"b":3}]'),
    ([{"a": 1, "b": 2}, {"a": 3}], JSON, '[{"a":1,"b":2},{"a":3}]'),
    ([{"a": 1, "b": 2}, {"a": 3}], CSV, "a,b\r\n1,2\r\n3,\r\n"),
    ({"s": "a\nb"}, JSON, '{"s":"a\\nb"}'),
    ([{"a": "x\ny"}], JSON, '[{"a":"x\\ny"}]'),
    ([{"a": "x\ny"}], CSV, 'a\r\n"x\ny"\r\n'),
    ((1, 2), JSON, "[1,2]"),
    ({"a": (1, 2)}, JSON, '{"a":[1,2]}'),
    ([{"label": "é"}], JSON, '[{"label":"é"}]'),
    ([{"label": "é"}], CSV, "label\r\né\r\n"),
    ({1: 2}, JSON, '{"1":2}'),
    ({"x": 1e22}, JSON, '{"x":1e+22}'),
    ([0.30000000000000004], JSON, "[0.30000000000000004]"),
]


@pytest.mark.peer("huggingface-toolkit")
@pytest.mark.parametrize(("body", "content_type", "expected"), DECODED)
def test_a_body_is_decoded_as_by_the_toolkit(body: str, content_type: str, expected: Any) -> None:
    assert decoder_encoder.decode(body, content_type) == expected
    if content_type == JSON:
        assert decoder_encoder.decode(body.encode(), content_type) == expected


@pytest.mark.peer("huggingface-toolkit")
@pytest.mark.parametrize(("prediction", "accept", "expected"), ENCODED)
def test_a_prediction_is_encoded_as_by_the_toolkit(prediction: Any, accept: str, expected: str) -> None:
    """CSV in the same characters; of JSON the same value in compact form (1e-07 is 1e-7 here)."""
    function = decoder_encoder.encode_json if accept == JSON else decoder_encoder.encode_csv
    for encoded in (
        decoder_encoder.encode(prediction, accept),
        decoder_encoder.encode(prediction, accept_type=accept),
        function(prediction, accept),
    ):
        if accept == CSV:
            assert encoded == expected
        else:
            assert json.loads(encoded) == json.loads(expected)
            assert b"\\u" not in encoded.encode()
            assert ", " not in encoded.replace("a, b", "")


@pytest.mark.peer("huggingface-toolkit", differs="NaN is not JSON: in a body it is an error, in an answer it is null")
def test_nan_is_no_json() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        decoder_encoder.decode('{"inputs": NaN}', JSON)
    assert decoder_encoder.encode(float("nan"), JSON) == "null"


@pytest.mark.peer("huggingface-toolkit", differs="the toolkit leaves the cells out, or fills them with None")
@pytest.mark.parametrize("body", ["inputs\na,b\n", "question,context\nq\n", "inputs\n"])
def test_a_row_of_another_width_than_the_header_is_an_error(body: str) -> None:
    with pytest.raises(PredictionException, match="header"):
        decoder_encoder.decode(body, CSV)


@pytest.mark.peer("huggingface-toolkit", differs="the toolkit accepts a header in capitals, and then finds no column")
def test_a_header_is_found_in_any_case() -> None:
    assert decoder_encoder.decode("Inputs\nx\n", CSV) == {"inputs": ["x"]}


@pytest.mark.peer("huggingface-toolkit", differs="the toolkit fails with an AttributeError")
@pytest.mark.parametrize(
    ("prediction", "expected"), [(np.arange(2), "0\n1\n"), ([[1.5, 2]], "1.5,2\n"), (["x"], "x\n"), ("text", "text\n")]
)
def test_a_table_that_is_no_list_of_objects_is_written_as_csv(prediction: Any, expected: str) -> None:
    assert decoder_encoder.encode(prediction, CSV) == expected


class Picture:
    """As an image of pillow, which the image of the server does not have."""

    def save(self, out: Any, format: str) -> None:  # noqa: A002  # pillow's name
        out.write(format.encode())


@pytest.mark.peer("huggingface-toolkit")
@pytest.mark.parametrize(
    ("accept", "expected"), [("image/png", b"PNG"), ("image/jpeg", b"JPEG"), ("image/x-image", b"PNG")]
)
def test_an_image_is_encoded_in_the_accepted_format(accept: str, expected: bytes) -> None:
    assert decoder_encoder.encode(Picture(), accept) == expected
