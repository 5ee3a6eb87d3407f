"""What can be asked of the commands, defined once."""

from options.data_command import parse_data_command
from options.parser import Options, describe, load_options, parse_options, save_options

__all__ = ["Options", "describe", "load_options", "parse_data_command", "parse_options", "save_options"]
