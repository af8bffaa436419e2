"""The commands of `ltrec`: flags as dataclasses, one call each. Out of scope: parsing and exit codes (`cli`)."""
