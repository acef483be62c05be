"""What shapes the next-token task: designers, the rules they follow, and their declarations.

Every file of this folder is imported with it, so that a designer is declared by being there.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
