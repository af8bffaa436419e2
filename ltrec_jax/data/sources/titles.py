"""SQL for film titles as the MovieLens family writes them: "Usual Suspects, The (1995)". Nothing else."""

_YEAR = r"\s*\((\d{4})(?:\s*[-–]\s*(?:\d{4})?\s*)?\)(?:\s*\(V\))?\s*$"


def title(column: str) -> str:
    """SQL: the title without its year, white space made single."""
    return rf"trim(regexp_replace(regexp_replace({column}, '{_YEAR}', ''), '\s+', ' ', 'g'))"


def year(column: str) -> str:
    """SQL: the (first) year as text, "" where there is none."""
    return f"regexp_extract({column}, '{_YEAR}', 1)"


def genres(column: str, separator: str = "|") -> str:
    """SQL: "Animation, Comedy" from a separated list; "" where the source says that it knows none."""
    return (
        f"replace(CASE WHEN {column} NOT IN ('(no genres listed)', 'unknown') THEN {column} END, '{separator}', ', ')"
    )
