"""The `samstudy` command. `main` is its entry point; heavy imports wait inside the commands that need them."""

from service.cli.app import main

__all__ = ["main"]
