import json

import numpy as np
import pytest
import torch

from ssl_fast.train.canonical import differences, flatten, hash_of, kept, to_json


def test_json_is_strict_and_takes_numbers_of_torch_and_numpy():
    text = to_json({"a": torch.tensor(1.5), "b": np.float32(0.5), "c": np.int64(3), "d": float("nan"), 5: (True, None)})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": 1.5, "b": 0.5, "c": 3, "d": None, "5": [True, None]}


@pytest.mark.parametrize("value", [torch.zeros(2), object(), {1}])
def test_json_refuses_what_it_has_no_word_for(value: object):
    with pytest.raises(ValueError, match=type(value).__name__):
        to_json({"x": [value]})


def test_leaves_are_named_by_dotted_keys():
    config = {"train": {"epochs": 3, "view": {}}, "data": [1, "a"]}
    assert flatten(config) == {"train.epochs": "3", "train.view": "{}", "data": '[1, "a"]'}


def test_ignored_keys_take_what_is_below_them_and_not_their_namesakes():
    leaves = {"train.device": "1", "train.device_count": "2", "data.loader.workers": "3", "train": "4"}
    assert kept(leaves, ["train.device", "data.loader"]) == {"train.device_count": "2", "train": "4"}


def test_hash_does_not_depend_on_the_order_of_keys():
    assert hash_of({"a": 1, "b": [1, 2]}) == hash_of({"b": [1, 2], "a": 1}) != hash_of({"a": 1, "b": [2, 1]})


def test_long_differences_are_cut():
    assert differences({}, {str(i): "1" for i in range(12)}).endswith("9: absent -> 1, and 2 more")
    assert differences({"a": "1"}, {"a": "1"}) == ""
