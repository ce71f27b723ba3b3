"""The command line's words for the device that a plan is for."""

from __future__ import annotations

import argparse
import re

from preceptor.errors import InputError
from preceptor.estimate.target import Device

_UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def device_of(options: argparse.Namespace) -> Device | None:
    """The device that `--device-memory`, `--devices` and `--rate` state; None with `--quick`.

    Raises:
        InputError: for a value that is no size, number or rate.
    """
    memory = None if options.device_memory is None else _bytes(options.device_memory)
    devices = 1 if options.devices is None else _whole(options.devices)
    flops = None if options.rate is None else _rate(options.rate)
    return None if options.quick else Device(memory, devices, flops)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b)\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise InputError(
            f"preceptor plan: --device-memory is {text!r}; write a number and a unit, such as 80GB (10^9 bytes) or "
            "80GiB"
        )
    return round(float(match[1]) * _UNITS[match[2].lower()])


def _whole(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise InputError(f"preceptor plan: --devices is {text!r}; write a whole number of at least 1")
    return int(text)


def _rate(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) == 0:
        raise InputError(f"preceptor plan: --rate is {text!r}; write TFLOP per second as a number above 0, such as 400")
    return float(text) * 1e12
