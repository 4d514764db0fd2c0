"""Configs, schedules, their command line and their JSON: nothing in this package imports torch."""

from polopt.config.help import help_text
from polopt.config.params import Config, InvalidValue, kind, param
from polopt.config.parse import apply, apply_many, parse, parse_many
from polopt.config.schedules import Constant, Cosine, Linear, Schedule
from polopt.config.serialize import fields_of, from_dict, to_dict

__all__ = [
    "Config",
    "Constant",
    "Cosine",
    "InvalidValue",
    "Linear",
    "Schedule",
    "apply",
    "apply_many",
    "fields_of",
    "from_dict",
    "help_text",
    "kind",
    "param",
    "parse",
    "parse_many",
    "to_dict",
]
