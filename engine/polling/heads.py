"""What the head of an answer says by itself: to wait, to ask elsewhere, that a login is refused."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

from engine.core.contracts import Head, Outcome, Request, Verb
from engine.limits.limiter import http_date_s, retry_after_s


def asked_to_wait_s(head: Head, now_ms: int) -> float | None:
    """Of Retry-After. A date is meant by the provider's own clock, which its answer tells."""
    if "retry-after" not in head.headers:
        return None
    now_s = http_date_s(head.headers.get("date", "").strip())
    return retry_after_s(head.headers["retry-after"], now_ms / 1000 if now_s is None else now_s)


def redirected(base_url: str, request: Request, head: Head) -> str | None:
    """Where a redirect leads; None: to another origin, or it is none that may be followed."""
    location = head.headers.get("location")
    asked = request.url or base_url + request.path
    if not location or request.method != "GET":
        return None
    query = ""
    if request.params and request.url is None:
        query = "?" + "&".join(f"{k}={v}" for k, v in request.params)
    target = urljoin(asked + query, location)
    here, there = urlsplit(asked), urlsplit(target)
    if (here.scheme, here.netloc) != (there.scheme, there.netloc):
        return None
    return target


def not_followed(request: Request, head: Head) -> Outcome:
    """A redirect that leads nowhere, or must not be followed."""
    if "location" not in head.headers:
        why = "a redirect that does not say where to"
    elif request.method != "GET":
        why = (
            f"a redirect of a {request.method} is not followed; is base_url as the provider has it?"
        )
    else:
        why = "a redirect to another origin is not followed, credentials would go there"
    return Outcome(verb=Verb.RETRY, cause=f"HTTP {head.status}: {why}")


def login_refused(head: Head) -> Outcome:
    """A login without a token: the provider's trouble, what stands before it, or wrong credentials.

    A redirect and a page for people say nothing of the credentials: a proxy gives them.
    """
    page = head.status < 400 and "html" in head.headers.get("content-type", "").lower()
    if 300 <= head.status < 400 or head.status in (408, 429) or head.status >= 500 or page:
        return Outcome(
            verb=Verb.RETRY,
            cause=f"the login answered HTTP {head.status}" + (" with a page" if page else ""),
            hold=head.status in (429, 503),
        )
    return Outcome(verb=Verb.PAUSE, cause=f"the login was refused (HTTP {head.status})")
