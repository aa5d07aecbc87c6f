"""Booking a hotel from a table: a task whose state the model changes by its tool calls.

What counts is the state at the end, the bookings; what the model says of them does not.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from datamodules.environments.calculator import distinct
from datamodules.environments.toolbox import as_call
from datamodules.environments.tools import Scene, ToolEnv

CITIES = ("Lisbon", "Oslo", "Prague", "Vienna", "Athens", "Dublin", "Madrid", "Warsaw")
NAMES = ("Astoria", "Bellevue", "Central", "Garden", "Harbour", "Lindner", "Metropol", "Park")
HOTELS_PER_CITY = 4
LEVELS = (1, 2, 3)
_INSTRUCTION = (
    "Look at the hotels with the tools and book exactly what the user wants. When it is booked,"
    " say so in one sentence."
)


@dataclass(frozen=True)
class Hotel:
    """A row of the table."""

    hotel_id: int
    name: str
    city: str
    stars: int
    price: int
    """A night, in euros; different for each hotel of a city."""
    full: bool
    """It has no room; the search does not show that."""


class BookingScene(Scene):
    """One guest's wish; ``correct`` if the bookings at the end are exactly that."""

    def __init__(self, wish: str, hotels: Sequence[Hotel], goal: dict[int, int]) -> None:
        self.hotels, self.goal = tuple(hotels), goal
        self.bookings: dict[int, int] = {}
        """Nights by hotel."""
        self.messages = [
            {"role": "system", "content": _INSTRUCTION},
            {"role": "user", "content": wish},
        ]

    def tools(self) -> Sequence[Callable[..., Any]]:
        return [self.search_hotels, self.book, self.cancel]

    def judge(self, answer: str) -> tuple[float, dict[str, float]]:
        correct = float(self.bookings == self.goal)
        return correct, {"correct": correct, "bookings": float(len(self.bookings))}

    def solution(self) -> Sequence[str]:
        ((hotel_id, nights),) = self.goal.items()
        hotel = self._hotel(hotel_id)
        book = as_call("book", hotel_id=hotel_id, nights=nights)
        return [as_call("search_hotels", city=hotel.city), book, f"{hotel.name} is booked."]

    def search_hotels(self, city: str, max_price: float | None = None) -> list[dict[str, Any]]:
        """List the hotels of a city, cheapest first.

        Args:
            city: the city's name.
            max_price: highest price of a night in euros; leave out for no limit.
        """
        found = [
            hotel
            for hotel in self.hotels
            if hotel.city.lower() == city.strip().lower()
            and (max_price is None or hotel.price <= max_price)
        ]
        if not found:
            raise LookupError(f"no such hotel in {city!r:.40}")
        rows = [asdict(hotel) for hotel in sorted(found, key=lambda hotel: hotel.price)]
        return [{k: v for k, v in row.items() if k not in ("city", "full")} for row in rows]

    def book(self, hotel_id: int, nights: int) -> str:
        """Book a room.

        Args:
            hotel_id: the hotel's number, as the search shows it.
            nights: how many nights, 1 to 30.
        """
        hotel = self._hotel(hotel_id)
        if not 1 <= nights <= 30:
            raise ValueError("nights must be 1 to 30")
        if hotel.hotel_id in self.bookings:
            raise ValueError(f"{hotel.name} is booked already; cancel it first to change it")
        if hotel.full:
            raise ValueError(f"{hotel.name} is fully booked")
        self.bookings[hotel.hotel_id] = int(nights)
        return f"booked {hotel.name}, {int(nights)} nights, {hotel.price * int(nights)} euros"

    def cancel(self, hotel_id: int) -> str:
        """Cancel a booking.

        Args:
            hotel_id: the number of the booked hotel.
        """
        hotel = self._hotel(hotel_id)
        if hotel.hotel_id not in self.bookings:
            raise ValueError(f"{hotel.name} is not booked")
        del self.bookings[hotel.hotel_id]
        return f"cancelled {hotel.name}"

    def _hotel(self, hotel_id: int) -> Hotel:
        for hotel in self.hotels:
            if hotel.hotel_id == hotel_id:
                return hotel
        raise LookupError(f"there is no hotel {hotel_id}")


def wish(difficulty: int, generator: random.Random) -> BookingScene:
    """A table of three cities and a guest who wants the cheapest hotel of one of them.

    Args:
        difficulty: 1 the cheapest; 2 the cheapest with some number of stars; 3 the same where the
            first choice turns out to be full.
    """
    cities = generator.sample(CITIES, 3)
    numbers = iter(generator.sample(range(10, 100), 3 * HOTELS_PER_CITY))
    hotels: list[Hotel] = []
    for city in cities:
        names = generator.sample(NAMES, HOTELS_PER_CITY)
        prices = generator.sample(range(45, 240), HOTELS_PER_CITY)
        for name, price in zip(names, prices, strict=True):
            stars = generator.randint(1, 5)
            hotels.append(Hotel(next(numbers), name, city, stars, price, full=False))
    city, nights = generator.choice(cities), generator.randint(2, 9)
    here = sorted((h for h in hotels if h.city == city), key=lambda hotel: hotel.price)
    # So many stars that the levels' choices remain: enough hotels have them.
    stars = sorted((h.stars for h in here), reverse=True)[1] if difficulty > 1 else 1
    fitting = [hotel for hotel in here if hotel.stars >= stars]
    if difficulty == 3:
        first = fitting.pop(0)
        hotels[hotels.index(first)] = Hotel(**asdict(first) | {"full": True})
    wanted = f" with at least {stars} stars" if difficulty > 1 else ""
    if difficulty == 3:
        wanted += " that has a room"
    text = f"Please book me the cheapest hotel in {city}{wanted}, for {nights} nights."
    return BookingScene(text, hotels, {fitting[0].hotel_id: nights})


class BookingEnv(ToolEnv):
    """``env=booking``: find the right hotel and book it; each task has a table of its own.

    Args:
        tokenizer: of the policy.
        difficulty: 1, 2 or 3 (see ``wish``).
        demonstrations: other tasks that are shown solved before each one.
        num_problems: to train on.
        num_held_out: for evaluation; none of them is trained on.
        seed: of the tables and the guests' wishes.
        tool_options: as of ``ToolEnv``.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        difficulty: int = 1,
        demonstrations: int = 1,
        num_problems: int = 1000,
        num_held_out: int = 200,
        seed: int = 0,
        **tool_options: Any,
    ) -> None:
        if difficulty not in LEVELS:
            raise ValueError(f"env.difficulty={difficulty}: use one of {LEVELS}")
        scenes = distinct(
            lambda generator: wish(difficulty, generator),
            num_problems,
            num_held_out,
            demonstrations,
            seed,
        )
        super().__init__(tokenizer, **scenes, **tool_options)
