"""Everyday product words by kind: what lets an unknown product name the nearest known one."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["kinds"]

# One kind a paragraph. A word may be of several; the first kind that the model knows anything of
# wins, so tight kinds stand before wide ones.
_TABLE = """
footwear: shoe boot sandal clog heel pump loafer oxford brogue derby slipper footwear trainer
    sneaker flat wellington moccasin espadrille mule cleat ballerina stiletto plimsoll galosh
    flop
bags: bag tote clutch wallet pouch rucksack backpack satchel briefcase suitcase duffel trolley
    luggage purse handbag holdall sack case trunk messenger
seating: chair armchair sofa couch stool bench seat ottoman recliner settee pouf rocker loveseat
    chaise throne hammock
furniture: table desk shelf bookcase bed wardrobe cabinet drawer dresser sideboard mirror rug
    carpet nightstand crib chair sofa armchair stool mattress cushion pillow curtain
lamps: lamp light lantern torch flashlight chandelier candle lampshade spotlight bulb sconce
cups: cup mug glass tumbler goblet teacup espresso cappuccino latte coffee tea chai cocoa
bottles: bottle flask thermos carafe decanter wine beer whisky whiskey vodka gin rum champagne
    juice soda cola water milk lemonade prosecco sake cider flacon
kitchen: pan pot kettle wok saucepan toaster blender mixer microwave oven fridge grinder juicer
    bowl plate dish tray knife fork spoon ladle whisk teapot skillet casserole grill cooker
    crockery freezer dishwasher scale colander
cosmetics: perfume cologne lipstick mascara cream lotion shampoo soap serum conditioner toner
    moisturiser moisturizer foundation powder blush nail polish deodorant toothpaste toothbrush
    razor sunscreen balm gel makeup eyeshadow concealer comb hairbrush fragrance
hats: hat cap helmet beanie beret fedora bonnet visor headband crown turban sombrero
clothing: jacket coat shirt tshirt tee dress skirt jeans trousers pants shorts sweater jumper
    hoodie cardigan suit tie scarf glove sock blouse blazer vest pyjamas kimono swimsuit bikini
    belt cap hat legging uniform underwear bra parka poncho apron
eyewear: glasses sunglass spectacle goggle eyeglass shade monocle
jewellery: ring necklace bracelet earring pendant brooch cufflink watch wristwatch jewel diamond
    anklet tiara smartwatch timepiece
clocks: clock watch alarm timer stopwatch hourglass wristwatch
electronics: phone smartphone tablet laptop computer keyboard mouse monitor television tv camera
    drone printer console router charger speaker headphone earbud headset radio projector
    microphone amplifier turntable controller gamepad robot vacuum iphone ipad macbook ebook
    airpod webcam cable
music: guitar piano violin drum trumpet saxophone flute ukulele bass cello harp accordion
    clarinet keyboard synthesizer banjo radio
balls: ball football basketball volleyball baseball rugby tennis
sport: racket bat dumbbell kettlebell skateboard snowboard ski surfboard yoga mat glove puck
    treadmill barbell golf club trampoline ball rollerblade skate
toys: toy teddy doll puzzle lego train plush bear rattle game puppet dinosaur kite rabbit bunny
    horse unicorn figurine
food: burger hamburger cake cupcake muffin pizza sandwich bread pie cookie chocolate doughnut
    donut salad fruit apple banana orange lemon cheese steak sushi pasta noodle soup icecream
    pastry croissant pancake waffle egg honey jam sweet candy rice taco burrito fries
plants: plant cactus succulent flower rose tulip bouquet tree fern orchid bonsai ivy palm herb
tools: drill hammer saw screwdriver wrench plier spanner toolbox ladder axe chisel sander spade
    shovel rake mower
boxes: box parcel package basket crate carton gift present hamper bin chest container jar can
vehicles: scooter motorcycle motorbike bicycle bike car truck van moped boat kayak canoe ship
    yacht tractor bus plane helicopter wheelchair stroller pram
home: vase clock candle frame picture mirror pillow blanket towel basket ornament statue
    sculpture globe diffuser urn
outdoor: tent lantern kayak canoe hammock barbecue parasol umbrella sleeping grill cooler
    binocular compass rope
"""


@lru_cache(maxsize=1)
def kinds() -> dict[str, frozenset[str]]:
    """Return the words of each kind, in the singular, in the table's order."""
    rows = (row.partition(":") for row in _TABLE.replace("\n    ", " ").strip().splitlines())
    return {kind: frozenset(listed.split()) for kind, _, listed in rows}
