"""What the third draw says: product families, grammars and languages of no earlier draw.

A slot's value is a tuple of ways to write it that mean the same; the values of a slot exclude each
other. Written by hand, and not read against the guards. `third.py` drops values whose words stand
in an earlier draw.
"""

from __future__ import annotations

__all__ = ["FOREIGN", "FRAMES", "GRAMMARS", "REGIONAL", "SLOTS", "SWAPS"]

Ways = tuple[tuple[str, ...], ...]


def ways(*values: str) -> Ways:
    """Return values that are written in one way."""
    return tuple((value,) for value in values)


def counted(unit: tuple[str, ...], *numbers: object) -> Ways:
    """Return amounts of a unit, each in all the ways that the unit is written."""
    return tuple(tuple(way.format(number) for way in unit) for number in numbers)


FRAMES = (
    "{x}",
    "{x}",
    "need a caption for this one: {x}",
    "caption pls: {x}",
    "Would you mind captioning {x}?",
    "What would you write under a picture of {x}?",
    "hey, can u do a caption for {x}",
    "Caption needed. {x}",
    "Suggest a caption: {x}",
    "Give me a caption for {x}!",
    "Let's have a caption for {x}, cheers",
    "I am looking for a caption for {x}. Many thanks in advance",
    "Dear team, kindly caption the following: {x}",
    "Come up with a caption for {x}",
)

REGIONAL: Ways = (
    ("extension lead", "extension cord"),
    ("spanner", "wrench"),
    ("aubergine", "eggplant"),
    ("courgette", "zucchini"),
    ("nappy bag", "diaper bag"),
    ("hoover", "vacuum cleaner"),
    ("windscreen", "windshield"),
    ("number plate", "license plate"),
    ("dummy clip", "pacifier clip"),
    ("fizzy drink", "soda pop"),
    ("skip", "dumpster"),
    ("drawing pin", "thumbtack"),
    ("rocket salad", "arugula salad"),
    ("mobile phone case", "cell phone case"),
    ("petrol can", "gas can"),
    ("trainers", "sneakers"),
    ("dressing gown", "bathrobe"),
    ("tap washer", "faucet washer"),
)
"""Things that Britain and America name differently."""

THINGS = ways(
    "thermostat", "router", "dashcam", "drone", "e-reader", "projector", "soundbar", "webcam",
    "power bank", "docking station", "smart plug", "turntable", "graphics tablet", "3D printer",
    "baby monitor", "air fryer", "espresso grinder", "dehumidifier", "lawnmower", "leaf blower",
    "pressure washer", "cordless drill", "jigsaw", "rowing machine", "kettlebell", "wetsuit",
    "surfboard", "snorkel", "tent peg", "climbing harness", "bike trailer", "roof rack",
)  # fmt: skip
PEOPLE = ways(
    "barista", "welder", "florist", "surgeon", "goalkeeper", "beekeeper", "violinist", "courier",
    "astronaut", "plumber", "toddler", "grandfather", "referee", "falconer", "nurse", "tailor",
)  # fmt: skip
ANIMALS = ways(
    "corgi", "tabby", "llama", "hedgehog", "tortoise", "ferret", "labrador", "goat", "axolotl",
    "hamster", "greyhound", "siamese cat", "donkey", "iguana",
)  # fmt: skip

SLOTS: dict[str, Ways] = {
    "thing": THINGS,
    "thing2": THINGS,
    "person": PEOPLE,
    "person2": PEOPLE,
    "animal": ANIMALS,
    "animal2": ANIMALS,
    "watts": counted(("{} W", "{}W", "{} watts"), 18, 20, 30, 45, 60, 65, 96, 100, 140),
    "battery": counted(("{} mAh", "{}mAh"), 3000, 4500, 5000, 5500, 10000, 20000),
    "storage": counted(("{} TB", "{}TB", "{} terabytes"), 1, 2, 4, 8) + ways("512 GB", "256 GB"),
    "hertz": counted(("{} Hz", "{}Hz", "{} hertz"), 50, 60, 120, 144, 240),
    "port": (("USB-C", "USB C"), ("USB-A", "USB A"), ("Lightning",), ("HDMI",), ("micro USB",)),
    "radio": (("Wi-Fi 6",), ("Wi-Fi 7",), ("Bluetooth 5.2",), ("Bluetooth 5.3",), ("LTE",)),
    "rating": ways("IP54", "IP65", "IP67", "IP68"),
    "mark": ways("Mark II", "Mark III", "Mark IV", "Gen 2", "Gen 3", "Pro", "Pro Max", "Lite"),
    "finish": ways(
        "graphite", "rose quartz", "titanium grey", "sunburst", "glacier blue", "matte sage",
        "gunmetal", "oxblood", "champagne", "midnight", "pistachio", "terracotta",
    ),
    "finish2": ways("cobalt", "apricot", "eggshell", "plum", "mustard", "mint", "lilac", "sand"),
    "dish": ways(
        "ramen", "paella", "pierogi", "shakshuka", "focaccia", "granola", "gazpacho", "tiramisu",
        "dumplings", "ceviche", "falafel wrap", "poke bowl", "pumpkin soup", "rhubarb crumble",
    ),
    "diet": (
        ("gluten-free", "gluten free"), ("vegan",), ("lactose-free", "lactose free"),
        ("nut-free", "nut free"), ("contains nuts",), ("halal",), ("keto",),
    ),
    "serves": tuple(
        (f"serves {n}", f"serves {word}")
        for n, word in ((2, "two"), (3, "three"), (4, "four"), (6, "six"), (8, "eight"))
    ),
    "minutes": counted(("{} min", "{} minutes", "{} mins"), 5, 10, 12, 15, 20, 25, 45, 50),
    "kcal": counted(("{} kcal", "{}kcal"), 180, 220, 310, 430, 480, 560, 650),
    "heat": (
        ("served hot",), ("served cold",), ("served lukewarm",), ("straight from the freezer",),
    ),
    "garnish": ways("basil", "sesame", "pomegranate seeds", "chilli oil", "dill", "lemon zest"),
    "cream": ways(
        "serum", "sunscreen", "lip balm", "shampoo", "night cream", "toner", "hand cream",
        "mascara", "conditioner", "beard oil", "eye mask", "foundation", "bath salts",
    ),
    "spf": ways("SPF 15", "SPF 20", "SPF 30", "SPF 50"),
    "skin": ways("dry skin", "oily skin", "sensitive skin", "mature skin", "combination skin"),
    "volume": counted(
        ("{} ml", "{}ml", "{} millilitres", "{} milliliters"), 15, 30, 50, 75, 150, 200
    ),
    "shade": ways("shade 110", "shade 120", "shade 210", "shade 211", "shade 310"),
    "scent": (
        ("fragrance-free", "fragrance free"), ("scented with bergamot",), ("scented with neroli",),
        ("scented with vetiver",), ("scented with cedar",),
    ),
    "whom": ways(
        "for women", "for men", "for teenagers", "for newborns", "for pensioners",
        "for left-handers", "for right-handers", "for beginners", "for professionals",
    ),
    "ages": (
        ("ages 3-5", "ages 3 to 5", "ages 3–5"), ("ages 5-7", "ages 5 to 7", "ages 5–7"),
        ("ages 6-9", "ages 6 to 9", "ages 6–9"), ("ages 9-12", "ages 9 to 12", "ages 9–12"),
        ("ages 12+",),
    ),
    "toy": ways(
        "marble run", "ride-on tractor", "stacking cups", "finger puppets", "walkie-talkie set",
        "magnetic tiles", "glow-in-the-dark puzzle", "play kitchen", "stick horse", "kite",
    ),
    "kilos": counted(("{} kg", "{}kg", "{} kilograms"), "1.5", "2.5", "3", "7.5", "12", "20"),
    "doing": ways(
        "chasing", "sniffing", "licking", "ignoring", "carrying", "leading", "drawing",
        "photographing", "following",
    ),
    "weather": ways(
        "in thick fog", "in drizzle", "in a snowstorm", "in a heatwave", "under a clear sky",
        "during a thunderstorm",
    ),
    "hour": ways("at dawn", "at noon", "at dusk", "at midnight", "in the small hours"),
    "season": ways("in early spring", "in late spring", "in midsummer", "in late autumn"),
    "town": ways(
        "Ljubljana", "Valparaiso", "Reykjavik", "Gdansk", "Zagreb", "Kyoto", "Oaxaca", "Galway",
        "Trieste", "Windhoek", "Hobart", "Bruges", "Salzburg", "Naples", "Riga", "Leeds",
    ),
    "town2": ways(
        "Tromso", "Lucerne", "Split", "Malaga", "Cork", "Lyon", "Ghent", "Aarhus", "Bilbao",
    ),
    "ride": (("night train",), ("ferry",), ("cable car",), ("coach",), ("gondola",), ("tram",)),
    "klass": (
        ("first class",), ("second class",), ("economy class",), ("business class",),
    ),
    "date": (
        ("on 4 March", "on March 4", "on 4th March"), ("on 5 March", "on March 5"),
        ("on 14 March", "on March 14"), ("on 4 May", "on May 4"),
        ("on 21 June", "on June 21", "on 21st June"),
    ),
    "clock": (
        ("at 8:30",), ("at 8:45",), ("at 18:30",), ("at 9 am", "at 9am"), ("at 9 pm", "at 9pm"),
    ),
    "limit": tuple(
        (f"max. {n} words", f"max {n} words", f"at most {n} words") for n in (8, 10, 12, 15, 20)
    ) + tuple((f"at least {n} words",) for n in (10, 20)),
    "emoji": (("no emoji", "without emoji"), ("with emoji",), ("exactly one emoji",)),
    "voice": ways(
        "first person", "second person", "third person", "as a question", "as a haiku",
        "as a headline", "in title case", "in past tense", "in present tense",
    ),
    "mood": ways(
        "deadpan", "heartfelt", "sarcastic", "breathless", "dreamy", "clinical", "pompous",
        "tender", "gloomy", "jubilant",
    ),
    "site": (("for Instagram",), ("for LinkedIn",), ("for a billboard",), ("for the newsletter",),
             ("for a museum wall",), ("for eBay",)),
    "state": (
        ("unopened",), ("half empty",), ("brand new", "brand-new"), ("second-hand", "second hand"),
        ("refurbished",), ("damaged",), ("folded",), ("unfolded",), ("assembled",), ("in parts",),
    ),
    "hand": ways("in the left hand", "in the right hand", "in both hands", "in neither hand"),
    "quant": (
        ("all of them lit",), ("none of them lit",), ("only one of them lit",),
        ("all but one of them lit",), ("half of them lit",),
    ),
    "only": (
        ("only the rim is gilded",), ("only the base is gilded",), ("everything is gilded",),
        ("nothing is gilded",), ("everything but the rim is gilded",),
    ),
    "many": tuple(
        (str(n), word)
        for n, word in ((5, "five"), (7, "seven"), (9, "nine"), (11, "eleven"), (15, "fifteen"))
    ),
    "lamp": ways("lanterns", "bulbs", "torches", "tealights", "headlamps", "sconces", "beacons"),
    "when": ways("before assembly", "after assembly", "during assembly"),
    "rank": (
        ("the first in the series", "the 1st in the series"),
        ("the second in the series", "the 2nd in the series"),
        ("the third in the series", "the 3rd in the series"),
        ("the last in the series",),
    ),
    "compare": ways(
        "larger than", "smaller than", "as large as", "heavier than", "lighter than",
        "cheaper than", "quieter than", "louder than",
    ),
    "crowd": (
        ("nobody in sight",), ("people in the background",), ("people in the foreground",),
        ("one person walking away",), ("one person walking closer",),
    ),
    "degrees": (
        ("-5 °C", "-5°C", "minus 5 °C"), ("5 °C", "5°C"), ("15 °C", "15°C"), ("-15 °C", "-15°C"),
        ("50 °C", "50°C"),
    ),
    "part": ways("bumper", "spark plug", "wiper blade", "brake disc", "wing mirror", "gearbox"),
    "axle": ways("front left", "front right", "rear left", "rear right"),
    "fraction": (
        ("1/2 inch", "half inch", "half-inch"), ("1/4 inch", "quarter inch", "quarter-inch"),
        ("3/4 inch",), ("3/8 inch",), ("5/8 inch",),
    ),
    "thread": ways("left-hand thread", "right-hand thread", "no thread"),
    "years": ways("1998-2003", "1998-2004", "2003-2009", "2010-2016", "since 2016", "until 1998"),
}  # fmt: skip

GRAMMARS: dict[str, tuple[str, ...]] = {
    "gadget": (
        "{brand} {thing} {mark}, {watts}, {port}, {finish}, {rating}",
        "{finish} {brand} {thing} {mark}, {port}, {watts}, {rating}",
        "{brand} {thing} {mark} in {finish} ({watts}, {rating}, {port})",
        "the {brand} {thing} {mark}. {rating}. {watts}. {port}. {finish}.",
    ),
    "spec": (
        "{thing}\n- {storage}\n- {hertz}\n- {battery}\n- {radio}\n- model {code}",
        "model {code}\n- {battery}\n- {storage}\n- {hertz}\n- {radio}\n- {thing}",
        "{thing} (model {code}): {storage}, {hertz}, {battery}, {radio}",
        "{thing}, model {code} | {radio} | {hertz} | {battery} | {storage}",
    ),
    "plate": (
        "{dish} with {garnish}, {diet}, {serves}, {minutes}, {kcal}, {heat}",
        "{diet} {dish} with {garnish}; {heat}; {minutes}; {serves}; {kcal}",
        "{heat}: {dish} with {garnish}. {serves}, {kcal}, {minutes}, {diet}",
    ),
    "beauty": (
        "{brand} {cream} {whom}, {skin}, {spf}, {volume}, {scent}, {shade}",
        "{cream} from {brand}, {volume}, {shade}, {whom}, {spf}, {scent}, {skin}",
        "{whom}: {brand} {cream}, {spf}, {skin}, {scent}, {volume}, {shade}",
    ),
    "nursery": (
        "{toy}, {ages}, {many} pieces, holds up to {kilos}, {finish}",
        "{finish} {toy} with {many} pieces; holds up to {kilos}; {ages}",
        "{ages}: {toy}, {finish}, {many} pieces, holds up to {kilos}",
    ),
    "act": (
        "{person} {doing} a {animal} {weather}, {hour}",
        "{hour}, {weather}: a {person} {doing} a {animal}",
        "a {person} {doing} a {animal}, {hour}, {weather}",
    ),
    "beasts": (
        "a {animal} {doing} a {animal2}, {hour}, {town}",
        "{town}, {hour}: {animal} {doing} a {animal2}",
        "{hour} in {town}, a {animal} {doing} a {animal2}",
    ),
    "trip": (
        "{ride} from {town} to {town2}, {klass}, {date}, {clock}",
        "{date}, {clock}: {ride} from {town} to {town2}, {klass}",
        "{klass} {ride} from {town} to {town2} {date} {clock}",
    ),
    "brief": (
        "{thing} in {finish}. {limit}, {emoji}, {voice}, {mood}, {site}.",
        "{site}, {mood}, {limit}, {voice}, {emoji}: {finish} {thing}",
        "{finish} {thing} / {mood} / {voice} / {site} / {emoji} / {limit}",
    ),
    "held": (
        "{person} holding a {state} {thing} {hand}, {crowd}",
        "{crowd}, a {person} holding a {state} {thing} {hand}",
        "a {person}, {crowd}, holding a {state} {thing} {hand}",
    ),
    "lamps": (
        "{many} {lamp}, {quant}, {hour}, {season}",
        "{season}, {hour}: {many} {lamp}, {quant}",
        "{many} {lamp} {season} {hour}, {quant}",
    ),
    "gilt": (
        "{finish} {thing}, {only}, {when}, {rank}",
        "{when}: {finish} {thing} ({rank}), {only}",
        "{rank}: a {finish} {thing} {when}. {only}.",
    ),
    "versus": (
        "a {thing} that is {compare} the {thing2}, {season}",
        "{season}: a {thing} {compare} the {thing2}",
        "{thing} {compare} the {thing2}, {season}",
    ),
    "layout": (
        "left: {finish} {thing}, right: {finish2} {thing2}, {mood}",
        "{mood}. On the left a {finish} {thing}, on the right a {finish2} {thing2}",
        "{mood}; a {finish} {thing} on the left and a {finish2} {thing2} on the right",
    ),
    "depth": (
        "{person} in the foreground, {person2} in the background, {weather}",
        "{weather}: {person} in the foreground and {person2} in the background",
        "{weather}, a {person} in the foreground, a {person2} in the background",
    ),
    "garage": (
        "{part}, {axle}, {years}, {fraction}, {thread}, part no. {code}, {state}",
        "{state} {part} ({axle}), part no. {code}, {fraction}, {thread}, {years}",
        "part no. {code}: {axle} {part}, {thread}, {fraction}, {state}, {years}",
    ),
    "record": (
        '{{"item": "{thing}", "finish": "{finish}", "qty": {qty}, "temp": "{degrees}"}}',
        '{{"qty": {qty}, "temp": "{degrees}", "item": "{thing}", "finish": "{finish}"}}',
        '{{"temp":"{degrees}","finish":"{finish}","item":"{thing}","qty":{qty}}}',
    ),
    "tags": (
        "#{brand} #{tag} #{tag2} {finish} {cream}, {qty} ml",
        "{finish} {cream} {qty} ml #{brand} #{tag} #{tag2}",
        "{cream}, {finish}, {qty} ml. #{tag} #{tag2} #{brand}",
    ),
}
SWAPS: dict[str, tuple[str, str]] = {
    "beasts": ("animal", "animal2"),
    "trip": ("town", "town2"),
    "versus": ("thing", "thing2"),
    "layout": ("finish", "finish2"),
    "depth": ("person", "person2"),
}
"""Slots of a grammar which, changing places, ask for something else. In ``versus`` a comparison
that is the same both ways (as large as) is never swapped."""

FOREIGN: dict[str, dict[str, tuple[str, ...]]] = {
    "it": {
        "frames": ("{x}", "Scrivi una didascalia per {x}", "Mi serve una didascalia: {x}"),
        "renderings": ("{thing} {colour} {where}, {cap}", "{where}: {thing} {colour}, {cap}"),
        "thing": ("borraccia", "valigia", "padella", "chitarra", "bicicletta", "tovaglia"),
        "colour": ("rossa", "gialla", "nera", "bianca", "azzurra"),
        "where": ("in giardino", "sul tetto", "sotto il ponte", "in cantina"),
        "cap": ("senza etichetta", "con etichetta", "taglia 38", "taglia 39", "3 pezzi", "4 pezzi"),
    },
    "pt": {
        "frames": ("{x}", "Escreva uma legenda para {x}", "Preciso de uma legenda: {x}"),
        "renderings": ("{thing} {colour} {where}, {cap}", "{where}: {thing} {colour}, {cap}"),
        "thing": ("mochila", "panela", "bicicleta", "cadeira", "camisa", "toalha"),
        "colour": ("vermelha", "amarela", "preta", "branca", "roxa"),
        "where": ("no jardim", "no telhado", "debaixo da ponte", "na varanda"),
        "cap": ("sem etiqueta", "com etiqueta", "tamanho 38", "tamanho 39", "2 peças", "4 peças"),
    },
    "nl": {
        "frames": ("{x}", "Schrijf een bijschrift voor {x}", "Graag een bijschrift: {x}"),
        "renderings": ("{colour} {thing} {where}, {cap}", "{where}: {colour} {thing}, {cap}"),
        "thing": ("fiets", "koffer", "gieter", "jas", "muts", "bezem"),
        "colour": ("rode", "gele", "zwarte", "witte", "paarse"),
        "where": ("in de tuin", "op het dak", "onder de brug", "naast de schuur"),
        "cap": ("zonder deksel", "met deksel", "maat 38", "maat 39", "2 stuks", "5 stuks"),
    },
    "pl": {
        "frames": ("{x}", "Napisz podpis: {x}", "Proszę o podpis do zdjęcia: {x}"),
        "renderings": ("{colour} {thing} {where}, {cap}", "{where}: {colour} {thing}, {cap}"),
        "thing": ("torba", "kurtka", "czapka", "szafka", "walizka", "łyżka"),
        "colour": ("czerwona", "zielona", "żółta", "czarna", "biała"),
        "where": ("w ogrodzie", "na dachu", "pod mostem", "obok stodoły"),
        "cap": ("bez etykiety", "z etykietą", "rozmiar 38", "rozmiar 39", "2 sztuki", "4 sztuki"),
    },
    "sv": {
        "frames": ("{x}", "Skriv en bildtext: {x}", "Jag behöver en bildtext till {x}"),
        "renderings": ("{colour} {thing} {where}, {cap}", "{where}: {colour} {thing}, {cap}"),
        "thing": ("cykel", "resväska", "mössa", "stekpanna", "ryggsäck", "gryta"),
        "colour": ("röd", "grön", "gul", "svart", "vit"),
        "where": ("i trädgården", "på taket", "under bron", "bredvid ladan"),
        "cap": ("utan lock", "med lock", "storlek 38", "storlek 39", "2 delar", "5 delar"),
    },
    "tr": {
        "frames": ("{x}", "Şunun için bir altyazı yaz: {x}", "Altyazı lazım: {x}"),
        "renderings": ("{where} {colour} {thing}, {cap}", "{cap}, {where} {colour} {thing}"),
        "thing": ("bisiklet", "tencere", "şapka", "çanta", "ceket", "kaşık"),
        "colour": ("kırmızı", "yeşil", "sarı", "siyah", "beyaz"),
        "where": ("bahçede", "çatıda", "köprünün altında", "köprünün üstünde"),
        "cap": ("kapaklı", "kapaksız", "38 beden", "39 beden", "2 parça", "4 parça"),
    },
    "ru": {
        "frames": ("{x}", "Напиши подпись: {x}", "Нужна подпись к фото: {x}"),
        "renderings": ("{colour} {thing} {where}, {cap}", "{where}: {colour} {thing}, {cap}"),
        "thing": ("сумка", "куртка", "шапка", "лейка", "лодка", "сковорода"),
        "colour": ("красная", "зелёная", "жёлтая", "чёрная", "белая"),
        "where": ("в саду", "на крыше", "под мостом", "возле сарая"),
        "cap": ("без крышки", "с крышкой", "размер 38", "размер 39", "2 штуки", "4 штуки"),
    },
    "el": {
        "frames": ("{x}", "Γράψε μια λεζάντα: {x}", "Χρειάζομαι λεζάντα για {x}"),
        "renderings": ("{colour} {thing} {where}, {cap}", "{where}: {colour} {thing}, {cap}"),
        "thing": ("τσάντα", "βαλίτσα", "καρέκλα", "κατσαρόλα", "κουβέρτα"),
        "colour": ("κόκκινη", "πράσινη", "κίτρινη", "μαύρη", "λευκή"),
        "where": ("στον κήπο", "στη στέγη", "κάτω από τη γέφυρα", "δίπλα στον αχυρώνα"),
        "cap": ("χωρίς καπάκι", "με καπάκι", "νούμερο 38", "νούμερο 39", "2 τεμάχια"),
    },
    "zh": {
        "frames": ("{x}", "请写一个图片说明:{x}", "给这张图配个标题:{x}"),
        "renderings": ("{where}的{colour}{thing},{cap}", "{cap},{where}的{colour}{thing}"),
        "thing": ("自行车", "行李箱", "帽子", "水壶", "背包", "毯子"),
        "colour": ("红色", "绿色", "黄色", "黑色", "白色"),
        "where": ("花园里", "屋顶上", "桥下", "桥上"),
        "cap": ("没有盖子", "有盖子", "38码", "39码", "两件", "四件"),
    },
    "ja": {
        "frames": ("{x}", "キャプションを書いてください:{x}", "写真の説明文をお願いします:{x}"),
        "renderings": ("{where}の{colour}{thing}、{cap}", "{cap}、{where}の{colour}{thing}"),
        "thing": ("自転車", "スーツケース", "帽子", "やかん", "リュック", "毛布"),
        "colour": ("赤い", "青い", "黄色い", "黒い", "白い"),
        "where": ("庭", "屋根の上", "橋の下", "橋の上"),
        "cap": ("ふたなし", "ふた付き", "サイズ38", "サイズ39", "2個", "4個"),
    },
    "ar": {
        "frames": ("{x}", "اكتب تعليقا على الصورة: {x}", "أحتاج تعليقا: {x}"),
        "renderings": ("{thing} {colour} {where}، {cap}", "{where}: {thing} {colour}، {cap}"),
        "thing": ("حقيبة", "دراجة", "قبعة", "ملعقة", "سترة"),
        "colour": ("حمراء", "خضراء", "صفراء", "سوداء", "بيضاء"),
        "where": ("في الحديقة", "على السطح", "تحت الجسر", "فوق الجسر"),
        "cap": ("بدون غطاء", "مع غطاء", "مقاس 38", "مقاس 39", "قطعتان", "أربع قطع"),
    },
}
