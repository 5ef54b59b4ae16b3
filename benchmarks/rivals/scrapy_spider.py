"""Scrapy: a spider that follows each account's pages, its items into a JSON lines feed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import scrapy
from measured import Spec, measure
from scrapy.crawler import CrawlerProcess


class Reports(scrapy.Spider):
    name = "reports"
    urls: list[str]

    async def start(self) -> AsyncIterator[Any]:
        for url in self.urls:
            yield self._page(url)

    def _page(self, url: str) -> Any:
        """Each page has the same address: the next one is what was not given yet."""
        target = f"{url}/sms/1/reports?limit=1000"
        return scrapy.Request(target, dont_filter=True, cb_kwargs={"url": url})

    def parse(self, response: Any, url: str) -> Iterator[Any]:
        results = response.json()["results"]
        yield from results
        if results:
            yield self._page(url)


def run(spec: Spec) -> None:
    process = CrawlerProcess(
        {
            "FEEDS": {str(Path(spec["base"]) / "scrapy.jsonl"): {"format": "jsonlines"}},
            "LOG_LEVEL": "ERROR",
            "TELNETCONSOLE_ENABLED": False,
            "DOWNLOAD_DELAY": 0,
            "CONCURRENT_REQUESTS_PER_DOMAIN": 16,
        }
    )
    process.crawl(Reports, urls=spec["urls"])
    process.start()


measure(run)
