"""singer-sdk: a tap with a stream whose partitions are the accounts, its messages to stdout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from measured import Spec, measure
from singer_sdk import RESTStream, Tap
from singer_sdk import typing as th
from singer_sdk.pagination import PageNumberPaginator

OBJECT = th.ObjectType(additional_properties=True)


class Pages(PageNumberPaginator):
    def has_more(self, response: Any) -> bool:
        return bool(response.json()["results"])


class Reports(RESTStream[int]):
    name = "reports"
    path = "/{account}/sms/1/reports"
    records_jsonpath = "$.results[*]"
    primary_keys = ("messageId",)
    schema = th.PropertiesList(
        *(th.Property(name, th.StringType) for name in (
            "bulkId", "messageId", "to", "from", "sentAt", "doneAt", "mccMnc", "entityId",
            "applicationId",
        )),
        th.Property("smsCount", th.IntegerType),
        *(th.Property(name, OBJECT) for name in ("price", "status", "error")),
    ).to_dict()  # fmt: skip

    @property
    def url_base(self) -> str:
        return str(self.config["base_url"])

    @property
    def partitions(self) -> list[dict[str, Any]]:
        return [{"account": account} for account in self.config["accounts"]]

    def get_new_paginator(self) -> Pages:
        return Pages(start_value=1)

    def get_url_params(self, context: Any, next_page_token: Any) -> dict[str, Any]:
        return {"limit": 1000, "page": next_page_token}


class TapReports(Tap):
    name = "tap-reports"
    config_jsonschema = th.PropertiesList(
        th.Property("base_url", th.StringType), th.Property("accounts", th.ArrayType(th.StringType))
    ).to_dict()

    def discover_streams(self) -> Iterable[Any]:
        return [Reports(tap=self)]


def run(spec: Spec) -> None:
    base = spec["urls"][0].rsplit("/", 1)[0]
    config = {"base_url": base, "accounts": [url.rsplit("/", 1)[1] for url in spec["urls"]]}
    TapReports(config=config).sync_all()


measure(run)
