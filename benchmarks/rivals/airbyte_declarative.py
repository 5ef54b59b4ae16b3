"""airbyte-cdk: a declarative source, a stream an account, its messages to stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from airbyte_cdk.entrypoint import launch
from airbyte_cdk.models import ConfiguredAirbyteCatalogSerializer
from airbyte_cdk.sources.declarative.concurrent_declarative_source import (
    ConcurrentDeclarativeSource,
)
from measured import Spec, measure

SCHEMA = {"type": "object", "additionalProperties": True, "properties": {}}


def _stream(name: str, url: str) -> dict[str, Any]:
    return {
        "type": "DeclarativeStream",
        "name": name,
        "primary_key": ["messageId"],
        "schema_loader": {"type": "InlineSchemaLoader", "schema": SCHEMA},
        "retriever": {
            "type": "SimpleRetriever",
            "requester": {
                "type": "HttpRequester",
                "url_base": url,
                "path": "/sms/1/reports",
                "http_method": "GET",
                "request_parameters": {"limit": "1000"},
            },
            "record_selector": {
                "type": "RecordSelector",
                "extractor": {"type": "DpathExtractor", "field_path": ["results"]},
            },
            "paginator": {
                "type": "DefaultPaginator",
                "page_token_option": {
                    "type": "RequestOption",
                    "inject_into": "request_parameter",
                    "field_name": "page",
                },
                "pagination_strategy": {
                    "type": "CursorPagination",
                    "cursor_value": "{{ last_page_size }}",
                    "stop_condition": "{{ last_page_size == 0 }}",
                },
            },
        },
    }


def run(spec: Spec) -> None:
    base = Path(spec["base"])
    streams = [_stream(f"reports_{n}", url) for n, url in enumerate(spec["urls"])]
    manifest = {
        "version": "6.0.0",
        "type": "DeclarativeSource",
        "check": {"type": "CheckStream", "stream_names": ["reports_0"]},
        "streams": streams,
        "spec": {
            "type": "Spec",
            "connection_specification": {"type": "object", "properties": {}},
        },
    }
    catalog = {
        "streams": [
            {
                "stream": {
                    "name": stream["name"],
                    "json_schema": SCHEMA,
                    "supported_sync_modes": ["full_refresh"],
                },
                "sync_mode": "full_refresh",
                "destination_sync_mode": "append",
            }
            for stream in streams
        ]
    }
    (base / "config.json").write_text("{}", encoding="utf-8")
    (base / "catalog.json").write_text(json.dumps(catalog), encoding="utf-8")
    source = ConcurrentDeclarativeSource(
        catalog=ConfiguredAirbyteCatalogSerializer.load(catalog),
        config={},
        state=None,
        source_config=manifest,
    )
    arguments = ["read", "--config", str(base / "config.json")]
    arguments += ["--catalog", str(base / "catalog.json")]
    launch(source, arguments)


measure(run)
