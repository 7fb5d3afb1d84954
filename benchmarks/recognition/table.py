"""The pictures of the set: rows of (category, background, product, brand, model, colours).

"" is a value that the picture does not show; each of the colours is right for the product's main colour. The names are
those that makers print on their products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image

from benchmarks.recognition import products

Product = Callable[[], Image.Image]
Row = tuple[str, str, Product, str, str, str]


def _lazily(draw: Callable[..., Image.Image]) -> Callable[..., Product]:
    def later(*args: Any, **options: Any) -> Product:
        return partial(draw, *args, **options)

    return later


BLACK, WHITE, RED, BLUE, GREY = (30, 30, 33), (240, 240, 238), (190, 32, 36), (28, 84, 186), (120, 120, 124)
SILVER, GREEN, ORANGE, NAVY, YELLOW = (192, 194, 198), (40, 130, 62), (226, 96, 34), (24, 34, 84), (240, 204, 44)
SHOWS = "White Silver Black"  # a display is as white as it is black
c, s, b = _lazily(products.camera), _lazily(products.shoe), _lazily(products.box)
d, p = _lazily(products.device), _lazily(products.phone_back)
pages, flask = _lazily(products.screen), _lazily(products.bottle)

NOTHING: list[Row] = [
    ("sneaker", "white", s(WHITE), "", "", "White"),
    ("sneaker", "white", s(RED, WHITE), "", "", "Red"),
    ("sneaker", "white", s(BLACK), "", "", "Black"),
    ("sneaker", "grey", s(BLUE), "", "", "Blue"),
    ("sneaker", "wood", s(WHITE), "", "", "White"),
    ("sneaker", "cloth", s(GREEN, WHITE), "", "", "Green"),
    ("sneaker", "room", s(RED, BLACK), "", "", "Red"),
    ("sneaker", "outside", s(WHITE), "", "", "White"),
    ("camera", "white", c(), "", "", "Black"),
    ("camera", "grey", c(color=SILVER), "", "", "Silver Gray"),
    ("camera", "room", c(), "", "", "Black"),
    ("camera", "outside", c(), "", "", "Black"),
    ("other", "white", flask(ORANGE), "", "", "Orange"),
    ("other", "wood", flask(NAVY), "", "", "Navy Blue"),
    ("other", "room", flask(YELLOW), "", "", "Yellow"),
    ("lego", "cloth", b(YELLOW, [], bricks=True), "", "", "Yellow"),
]
PLAIN: list[Row] = [
    ("camera", "wood", c("Canon", "EOS R6"), "Canon", "EOS R6", "Black"),
    ("camera", "white", c("Canon", "EOS 850D", "CANON ZOOM LENS EF-S 18-55mm 1:4"), "Canon", "EOS 850D", "Black"),
    ("camera", "grey", c("Nikon", "D750", "NIKKOR 50mm 1:1.8G"), "Nikon", "D750", "Black"),
    ("camera", "cloth", c("SONY", "ILCE-7M4"), "Sony", "ILCE-7M4", "Black"),
    ("camera", "wood", c("FUJIFILM", "X-T4", color=SILVER), "Fujifilm", "X-T4", "Silver Gray"),
    ("camera", "white", c("LUMIX", "DC-G9"), "Panasonic", "DC-G9", "Black"),
    ("camera", "grey", c("PENTAX", "K-70"), "Pentax", "K-70", "Black"),
    ("camera", "cloth", c("LEICA", "M6", "SUMMICRON 1:2/50 LEICA"), "Leica", "M6", "Black"),
    ("camera", "wood", c("HASSELBLAD", "500C/M", color=SILVER), "Hasselblad", "500C/M", "Silver Gray"),
    ("camera", "white", c("Mamiya", "RB67"), "Mamiya", "RB67", "Black"),
    ("camera", "cloth", c("MINOLTA", "X-700"), "Minolta", "X-700", "Black"),
    ("camera", "grey", c("OLYMPUS", "OM-10", color=SILVER), "Olympus", "OM-10", "Silver Gray"),
    ("sneaker", "wood", b(ORANGE, [("NIKE", 150), ("AIR MAX 90", 80), ("US 9", 50)]), "Nike", "Air Max 90", "Orange"),
    ("sneaker", "cloth", b(BLUE, [("adidas", 150), ("STAN SMITH", 80)]), "adidas", "Stan Smith", "Blue"),
    ("sneaker", "grey", b(GREY, [("new balance", 120), ("990v5", 90)]), "New Balance", "990v5", "Gray"),
    ("sneaker", "white", b(RED, [("PUMA", 150), ("Suede Classic", 70)]), "Puma", "Suede Classic", "Red"),
    ("sneaker", "wood", b(NAVY, [("asics", 150), ("GEL-KAYANO 14", 70)]), "Asics", "Gel-Kayano 14", "Navy Blue"),
    ("sneaker", "cloth", b(RED, [("Reebok", 140), ("CLUB C 85", 80)]), "Reebok", "Club C 85", "Red"),
    ("lego", "wood", b(YELLOW, [("LEGO", 110), ("CITY", 90), ("60316", 70)], ink=RED, bricks=True), "LEGO",
     "City 60316", "Yellow"),
    ("lego", "cloth", b(BLUE, [("LEGO", 110), ("TECHNIC", 80), ("42143", 70)], bricks=True), "LEGO", "Technic 42143",
     "Blue"),
    ("lego", "grey", b(BLACK, [("LEGO", 110), ("STAR WARS", 70), ("75192", 70), ("16+", 60)], bricks=True), "LEGO",
     "Star Wars 75192", "Black"),
    ("lego", "white", b(GREEN, [("LEGO", 110), ("10307", 80), ("668 pcs", 40)], bricks=True), "LEGO", "10307", "Green"),
    ("other", "wood", d(RED, "SONY", "ICF-306"), "Sony", "ICF-306", "Red"),
    ("other", "cloth", d(BLACK, "JBL", "CHARGE 5"), "JBL", "Charge 5", "Black"),
    ("other", "grey", d(SILVER, "BRAUN", "T3"), "Braun", "T3", "Silver Gray"),
    ("other", "white", d(NAVY, "SEIKO", "SNK809"), "Seiko", "SNK809", "Navy Blue"),
    ("other", "wood", d(GREY, "PHILIPS", "AE1530"), "Philips", "AE1530", "Gray"),
    ("other", "cloth", d(WHITE, "PANASONIC", "RF-2400"), "Panasonic", "RF-2400", "White"),
    ("other", "grey", d(ORANGE, "Technics", "SL-1200"), "Technics", "SL-1200", "Orange"),
    ("other", "wood", d(YELLOW, "CASIO", "F-91W"), "Casio", "F-91W", "Yellow"),
]
LENS: list[Row] = [
    ("camera", "wood", c("LUMIX", "DC-TZ90", "LEICA DC VARIO-ELMAR 1:3.3-6.4"), "Panasonic", "DC-TZ90", "Black"),
    ("camera", "white", c("LUMIX", "", "LEICA DC VARIO-ELMARIT 1:2.8-4"), "Panasonic", "", "Black"),
    ("camera", "grey", c("SONY", "", "Carl Zeiss Vario-Sonnar T* 1.8-4.9"), "Sony", "", "Black"),
    ("camera", "cloth", c("SONY", "ZV-1", "ZEISS Vario-Sonnar T* 9.4-25.7"), "Sony", "ZV-1", "Black"),
    ("camera", "white", c("", "", "LEICA DC VARIO-ELMARIT 1:2.8-4 ASPH."), "", "", "Black"),
    ("camera", "wood", c("", "", "Carl Zeiss Tessar 2.8/50"), "", "", "Black"),
    ("camera", "cloth", c("Kodak", "", "Schneider-KREUZNACH VARIOGON"), "Kodak", "", "Black"),
    ("camera", "grey", c("Canon", "", "SIGMA 24-70mm 1:2.8 DG HSM"), "Canon", "", "Black"),
    ("camera", "wood", c("Nikon", "", "TAMRON SP 90mm F/2.8 Di MACRO"), "Nikon", "", "Black"),
    ("camera", "white", c("Canon", "", "E3-6021-089 50mm"), "Canon", "", "Black"),
    ("other", "wood", p(BLACK, "NOKIA", "ZEISS"), "Nokia", "", "Black"),
    ("other", "cloth", p(NAVY, "HUAWEI", "LEICA"), "Huawei", "", "Navy Blue"),
    ("other", "white", p(GREEN, "ONEPLUS", "HASSELBLAD"), "OnePlus", "", "Green"),
    ("other", "grey", p(BLACK, "", "LEICA"), "", "", "Black"),
    ("other", "wood", p(WHITE, "", "HASSELBLAD"), "", "", "White"),
    ("camera", "cloth", p(BLACK, "", "Carl Zeiss"), "", "", "Black"),
]
SCREENS: list[Row] = [
    ("other", "wood", pages([("Google", 130), ("News of today", 40), ("Images", 34)]), "", "", SHOWS),
    ("other", "room", pages([("Google", 130), ("Sign in", 40)]), "", "", SHOWS),
    ("other", "cloth", pages([("Google", 110), ("Search results", 40)], name="DELL"), "Dell", "", SHOWS),
    ("other", "grey", pages([("SAMSUNG", 100), ("Galaxy S24", 60), ("Buy now", 40)], name="LENOVO"), "Lenovo", "",
     SHOWS),
    ("other", "wood", pages([("NIKE", 84), ("Just in", 34), ("Air Max 90", 40)], phone=True), "", "",
     SHOWS),
    ("camera", "cloth", pages([("Canon", 120), ("EOS R5", 70), ("Add to cart", 36)]), "", "", SHOWS),
    ("sneaker", "wood", pages([("adidas", 120), ("Samba OG shoes", 50), ("Free shipping", 36)]), "", "",
     SHOWS),
    ("other", "room", pages([("amazon", 80), ("Deals", 40), ("Basket", 36)], phone=True), "", "",
     SHOWS),
]
PASTELS = {
    (150, 185, 180): "Mint",
    (178, 222, 206): "Mint",
    (240, 190, 195): "Pink",
    (246, 208, 214): "Pink",
    (200, 180, 220): "Lavender",
    (216, 204, 236): "Lavender",
    (178, 208, 234): "Light Blue",
    (238, 228, 200): "Cream Beige",
    (250, 206, 178): "Peach",
    (248, 236, 168): "Yellow",
}
PASTEL: list[Row] = [("sneaker", "white", s(color, WHITE), "", "", names) for color, names in PASTELS.items()]
PASTEL += [("other", "wood", flask(color), "", "", names) for color, names in PASTELS.items()]
SMALL: list[Row] = [
    ("camera", "wood", c("Canon", "EOS R6", size=26), "Canon", "EOS R6", "Black"),
    ("camera", "white", c("Nikon", "D7500", size=24), "Nikon", "D7500", "Black"),
    ("camera", "grey", c("SONY", "ZV-1", size=22), "Sony", "ZV-1", "Black"),
    ("other", "cloth", d(RED, "SONY", "ICF-306", size=30), "Sony", "ICF-306", "Red"),
    ("other", "wood", d(WHITE, "BOSE", "", size=26), "Bose", "", "White"),
    ("sneaker", "white", s(WHITE, BLACK, "adidas", size=30), "adidas", "", "White"),
    ("sneaker", "grey", s(BLACK, WHITE, "PUMA", size=26), "Puma", "", "Black"),
    ("lego", "wood", b(BLUE, [("LEGO", 40), ("31120", 26)], bricks=True), "LEGO", "31120", "Blue"),
]
CLUTTERED: list[Row] = [
    ("camera", "room", c("Canon", "EOS R6"), "Canon", "EOS R6", "Black"),
    ("camera", "outside", c("Nikon", "D750", "NIKKOR 50mm 1:1.8G"), "Nikon", "D750", "Black"),
    ("camera", "room", c("FUJIFILM", "X-T4", color=SILVER), "Fujifilm", "X-T4", "Silver Gray"),
    ("other", "room", d(RED, "SONY", "ICF-306"), "Sony", "ICF-306", "Red"),
    ("other", "outside", d(BLACK, "JBL", "CHARGE 5"), "JBL", "Charge 5", "Black"),
    ("sneaker", "room", b(ORANGE, [("NIKE", 150), ("AIR MAX 90", 80)]), "Nike", "Air Max 90", "Orange"),
    ("sneaker", "outside", s(WHITE, BLACK, "adidas", size=60), "adidas", "", "White"),
    ("lego", "room", b(YELLOW, [("LEGO", 110), ("CITY", 90), ("60316", 70)], ink=RED, bricks=True), "LEGO",
     "City 60316", "Yellow"),
]
LINES: list[Row] = [
    ("camera", "wood", c("LUMIX", ""), "Panasonic", "", "Black"),
    ("camera", "white", c("Canon", "EOS"), "Canon", "", "Black"),
    ("camera", "grey", c("Nikon", "COOLPIX"), "Nikon", "", "Black"),
    ("sneaker", "cloth", b(RED, [("NIKE", 150), ("AIR MAX", 80)]), "Nike", "", "Red"),
    ("lego", "wood", b(BLUE, [("LEGO", 120), ("CITY", 100)], bricks=True), "LEGO", "", "Blue"),
    ("other", "cloth", d(BLACK, "SAMSUNG", "Galaxy"), "Samsung", "", "Black"),
    ("other", "grey", d(BLUE, "SONY", "WALKMAN"), "Sony", "", "Blue"),
]
UNLISTED: list[Row] = [
    ("other", "wood", d(RED, "ZORBITRON"), "Zorbitron", "", "Red"),
    ("other", "white", d(BLACK, "VELOMAX", "", ["Made in China"]), "Velomax", "", "Black"),
    ("other", "cloth", flask(GREEN, "KAPRIKO"), "Kapriko", "", "Green"),
    ("other", "grey", d(NAVY, "Ondavox", "", ["Stereo", "AM FM"]), "Ondavox", "", "Navy Blue"),
    ("other", "wood", b(ORANGE, [("TELMARA", 130), ("coffee", 60), ("250 g", 40)]), "Telmara", "", "Orange"),
    ("camera", "wood", c("ZORBITRON", "TX-9"), "", "", "Black"),
    ("sneaker", "cloth", b(BLUE, [("VELOMAX", 130), ("RUNNER 7", 70)]), "", "", "Blue"),
]
GARBAGE: list[Row] = [
    ("camera", "white", c("Canon", "", note="E3-6021-089"), "Canon", "", "Black"),
    ("camera", "wood", c("Nikon", "", note="No. 3059284 JAPAN"), "Nikon", "", "Black"),
    ("camera", "grey", c("SONY", "", note="FCC ID: AK8-4731B"), "Sony", "", "Black"),
    ("other", "cloth", d(RED, "SONY", "", ["S/N 40293-84B", "DC 6V 1.5W", "MADE IN JAPAN"]), "Sony", "", "Red"),
    ("other", "wood", d(WHITE, "BOSCH", "", ["0601-9H1100", "18V 2.5Ah", "EAN 4059952"]), "Bosch", "", "White"),
    ("other", "grey", d(BLACK, "PHILIPS", "", ["Lot B2271-03", "2023-11", "IP54 230V"]), "Philips", "", "Black"),
    ("sneaker", "wood", b(ORANGE, [("NIKE", 150), ("UK 8.5 EUR 43", 50), ("CW2288-111", 50)]), "Nike", "", "Orange"),
]
UNEASY: list[Row] = [  # products that hardly differ from what is behind them
    ("sneaker", "white", s((250, 250, 250), (236, 236, 236), sole=(252, 252, 252)), "", "", "White"),
    ("camera", "white", c("Canon", "", color=(228, 228, 228)), "Canon", "", "White Silver"),
    ("other", "grey", d((150, 150, 153), "BRAUN"), "Braun", "", "Gray"),
    ("other", "wood", b((176, 132, 92), [("TELMARA", 100)]), "Telmara", "", "Brown Beige"),
    ("sneaker", "cloth", s((150, 152, 156), (130, 130, 134)), "", "", "Gray"),
    ("other", "outside", flask((140, 180, 220)), "", "", "Light Blue Blue"),
]
