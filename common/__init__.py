"""What the bundles share: data reading and checks, engine handlers, losses, reports. Knows no method and no bundle."""

__version__ = "0.1.0"
