"""People and dogs. Each fills its pen's picture and faces right."""

from __future__ import annotations

from paddle_llava.demo.pen import SKIN, STEEL, TYRE, Color, Pen, shade

_HAIR: tuple[Color, ...] = ((46, 34, 28), (96, 62, 34), (190, 150, 84), (130, 126, 124))
_TROUSERS: tuple[Color, ...] = ((62, 66, 84), (84, 80, 76), (52, 52, 58))


def draw_person(pen: Pen) -> None:
    """The colour is the clothes'."""
    skin, hair = pen.rng.choice(SKIN), pen.rng.choice(_HAIR)
    trousers = pen.rng.choice(_TROUSERS)
    dress, walking, hat, long_hair = (pen.chance(p) for p in (0.4, 0.5, 0.3, 0.3))
    spread = 0.22 if walking else 0.08
    legs = skin if dress else trousers
    for x in (0.5 - spread, 0.5 + spread):
        pen.line([(0.5, 0.60), (x, 0.95)], 0.075, legs)
        pen.rect(x - 0.10, 0.95, x + 0.16, 1, TYRE)
    if long_hair:
        pen.round(0.26, 0.03, 0.74, 0.30, 0.06, hair)
    for side in (-1, 1):
        hand = (0.5 + side * (0.36 if walking else 0.30), 0.52)
        pen.line([(0.5 + side * 0.20, 0.27), hand], 0.07, pen.dark)
        pen.disc(*hand, 0.03, skin)
    if dress:
        pen.poly([(0.30, 0.24), (0.70, 0.24), (0.94, 0.74), (0.06, 0.74)], pen.base)
        pen.line([(0.34, 0.46), (0.66, 0.46)], 0.02, pen.dark)
    else:
        pen.round(0.24, 0.22, 0.76, 0.62, 0.06, pen.base)
        pen.line([(0.5, 0.26), (0.5, 0.60)], 0.012, pen.dark)
    pen.disc(0.5, 0.115, 0.10, skin)
    if hat:
        pen.rect(0.16, 0.055, 0.84, 0.085, pen.dark)
        pen.round(0.30, 0, 0.70, 0.07, 0.03, pen.base)
    else:
        pen.oval(0.27, 0, 0.73, 0.10, hair)
    pen.disc(0.60, 0.115, 0.014, TYRE)


def draw_dog(pen: Pen) -> None:
    ear = shade(pen.base, 0.6)
    spotted, long_tail = pen.chance(0.3), pen.chance(0.5)
    pen.line([(0.14, 0.42), (0.02, 0.10 if long_tail else 0.24)], 0.09, pen.dark)
    for x in (0.22, 0.58):
        pen.rect(x, 0.56, x + 0.09, 1, pen.dark)
    for x in (0.12, 0.50):
        pen.rect(x, 0.56, x + 0.09, 1, pen.base)
    pen.round(0.09, 0.34, 0.70, 0.72, 0.18, pen.base)
    pen.poly([(0.54, 0.46), (0.62, 0.14), (0.82, 0.30), (0.70, 0.64)], pen.base)
    pen.round(0.60, 0.06, 0.88, 0.40, 0.14, pen.base)
    pen.round(0.76, 0.20, 1, 0.40, 0.08, pen.light)
    pen.oval(0.94, 0.18, 1, 0.29, TYRE)
    pen.disc(0.79, 0.16, 0.04, TYRE)
    pen.oval(0.58, 0.06, 0.70, 0.38, ear)
    if pen.chance(0.6):
        pen.line([(0.60, 0.46), (0.72, 0.50)], 0.06, STEEL)
    if spotted:
        pen.oval(0.22, 0.36, 0.40, 0.56, ear)
