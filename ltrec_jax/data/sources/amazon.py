"""Amazon Reviews 2023 (McAuley Lab, UC San Diego): product reviews with metadata, one dataset per category.

An item is a parent product (`parent_asin`): variants of colour or size share one. Texts come from the metadata; a
product that was reviewed but is not described joins the catalogue with empty texts. Review texts are not kept.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ltrec_jax.data import fetch
from ltrec_jax.data.sources import reading
from ltrec_jax.data.sources.source import Source, Variant, local_folder

if TYPE_CHECKING:
    import duckdb

_MIRRORS = (
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw",
    "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_2023/raw",
)
_SCALE = (1.0, 5.0)
# Users, items and ratings of each category as the home page counts them.
_CATEGORIES = {
    "All_Beauty": ("632.0K", "112.6K", "701.5K"),
    "Amazon_Fashion": ("2.0M", "825.9K", "2.5M"),
    "Appliances": ("1.8M", "94.3K", "2.1M"),
    "Arts_Crafts_and_Sewing": ("4.6M", "801.3K", "9.0M"),
    "Automotive": ("8.0M", "2.0M", "20.0M"),
    "Baby_Products": ("3.4M", "217.7K", "6.0M"),
    "Beauty_and_Personal_Care": ("11.3M", "1.0M", "23.9M"),
    "Books": ("10.3M", "4.4M", "29.5M"),
    "CDs_and_Vinyl": ("1.8M", "701.7K", "4.8M"),
    "Cell_Phones_and_Accessories": ("11.6M", "1.3M", "20.8M"),
    "Clothing_Shoes_and_Jewelry": ("22.6M", "7.2M", "66.0M"),
    "Digital_Music": ("101.0K", "70.5K", "130.4K"),
    "Electronics": ("18.3M", "1.6M", "43.9M"),
    "Gift_Cards": ("132.7K", "1.1K", "152.4K"),
    "Grocery_and_Gourmet_Food": ("7.0M", "603.2K", "14.3M"),
    "Handmade_Products": ("586.6K", "164.7K", "664.2K"),
    "Health_and_Household": ("12.5M", "797.4K", "25.6M"),
    "Health_and_Personal_Care": ("461.7K", "60.3K", "494.1K"),
    "Home_and_Kitchen": ("23.2M", "3.7M", "67.4M"),
    "Industrial_and_Scientific": ("3.4M", "427.5K", "5.2M"),
    "Kindle_Store": ("5.6M", "1.6M", "25.6M"),
    "Magazine_Subscriptions": ("60.1K", "3.4K", "71.5K"),
    "Movies_and_TV": ("6.5M", "747.8K", "17.3M"),
    "Musical_Instruments": ("1.8M", "213.6K", "3.0M"),
    "Office_Products": ("7.6M", "710.4K", "12.8M"),
    "Patio_Lawn_and_Garden": ("8.6M", "851.7K", "16.5M"),
    "Pet_Supplies": ("7.8M", "492.7K", "16.8M"),
    "Software": ("2.6M", "89.2K", "4.9M"),
    "Sports_and_Outdoors": ("10.3M", "1.6M", "19.6M"),
    "Subscription_Boxes": ("15.2K", "641", "16.2K"),
    "Tools_and_Home_Improvement": ("12.2M", "1.5M", "27.0M"),
    "Toys_and_Games": ("8.1M", "890.7K", "16.3M"),
    "Video_Games": ("2.8M", "137.2K", "4.6M"),
    "Unknown": ("23.1M", "13.2M", "63.8M"),
}


def _read(connection: "duckdb.DuckDBPyConnection", folder: Path, *, category: str) -> None:
    reviews = folder / f"{category}.jsonl.gz"
    names = {"user_id": "VARCHAR", "parent_asin": "VARCHAR", "rating": "FLOAT", "timestamp": "BIGINT"}
    reading.read_json_lines(connection, "reviews", reviews, names)
    low, high = _SCALE
    reading.require(
        connection,
        "reviews",
        f"""user_id IS NOT NULL AND parent_asin IS NOT NULL AND rating BETWEEN {low} AND {high}
            AND "timestamp" >= 0""",
        reviews,
    )
    reading.run(
        connection,
        """CREATE TABLE events AS
           SELECT user_id, parent_asin AS item_id, rating, "timestamp" // 1000 AS "timestamp" FROM reviews
           ORDER BY rowid""",
        "listing reviews",
    )
    names = {"parent_asin": "VARCHAR", "title": "VARCHAR", "main_category": "VARCHAR", "store": "VARCHAR"}
    names |= dict.fromkeys(("categories", "features", "description"), "VARCHAR[]")
    reading.read_json_lines(connection, "products", folder / f"meta_{category}.jsonl.gz", names)
    reading.run(
        connection,
        """CREATE TABLE items AS
           SELECT parent_asin AS item_id, title, array_to_string(categories, ', ') AS categories, main_category, store,
                  array_to_string(features, ' ') AS features, array_to_string(description, ' ') AS description
           FROM products WHERE parent_asin IS NOT NULL
           QUALIFY row_number() OVER (PARTITION BY parent_asin ORDER BY products.rowid) = 1 ORDER BY parent_asin""",
        "collecting products",
    )


_LICENCE = "no explicit licence: research use; reviews remain their authors'"
_CITATION = "Y. Hou et al. Bridging Language and Items for Retrieval and Recommendation. arXiv:2403.03952, 2024."


def _source(category: str) -> Source:
    name = "amazon-2023-" + category.lower().replace("_", "-")
    files = (f"{category}.jsonl.gz", f"meta_{category}.jsonl.gz")
    mirrors = [
        fetch.Together(
            (
                fetch.Url(f"{address}/review_categories/{files[0]}", {files[0]: files[0]}),
                fetch.Url(f"{address}/meta_categories/{files[1]}", {files[1]: files[1]}),
            )
        )
        for address in _MIRRORS
    ]
    artifact = fetch.Artifact(name, dict.fromkeys(files), (local_folder(name, files), *mirrors), _LICENCE, _CITATION)
    users, items, ratings = _CATEGORIES[category]
    return Source(
        name=name,
        domain="e-commerce",
        size=f"{ratings} ratings (1-5) of {items} products by {users} users, 1996-2023",
        licence=_LICENCE,
        citation=_CITATION,
        url="https://amazon-reviews-2023.github.io/",
        template="{title}. {categories}. {description}",
        scale=_SCALE,
        positive_rating=4.0,
        variants=(Variant(artifact, functools.partial(_read, category=category)),),
    )


SOURCES = tuple(_source(category) for category in _CATEGORIES)
