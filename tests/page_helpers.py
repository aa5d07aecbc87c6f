"""Reads a page as a browser would: its tags, its data, and what it would fetch."""

import json
from html.parser import HTMLParser


class Page(HTMLParser):
    """
    Attributes:
        tags: (name, attributes) of all, in order.
        data: what stands in its scripts of JSON.
        text: all that can be read.
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.data, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        last, attributes = self.tags[-1] if self.tags else ("", {})
        if last == "script" and attributes.get("type") == "application/json":
            self.data.append(json.loads(data))
        elif last not in ("script", "style"):
            self.text += data

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.tags.append(("", {}))

    def fetched(self):
        """What the page would load from elsewhere or lead to."""
        places = [a.get(key) for _, a in self.tags for key in ("src", "href", "action", "data")]
        return [place for place in places if place and not place.startswith("#")]

    def names(self):
        """Names of its tags."""
        return {tag for tag, _ in self.tags}
