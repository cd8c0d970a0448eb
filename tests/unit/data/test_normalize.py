import pytest

from distbelief.data.normalize import normalization


def test_caffe_takes_the_mean_off_and_does_not_divide() -> None:
    assert normalization("caffe") == ((123, 117, 104), (1, 1, 1))


def test_unit_is_in_units_of_255() -> None:
    mean, deviation = normalization("unit")
    assert mean == pytest.approx((123.675, 116.28, 103.53))
    assert deviation == pytest.approx((58.395, 57.12, 57.375))
