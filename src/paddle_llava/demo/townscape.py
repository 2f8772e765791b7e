"""What stands in a street, and the sun, clouds, birds and balloons above. Each fills its pen's picture."""

from __future__ import annotations

from paddle_llava.demo.pen import COLOURS, GLASS, LAMP, ROOFS, STEEL, TYRE, Color, Pen, shade

BARK: Color = (104, 76, 52)
IRON: Color = (58, 60, 66)
# Eight directions, sine and cosine, without the platform's own trigonometry.
_ROUND = ((1, 0), (0.707, 0.707), (0, 1), (-0.707, 0.707), (-1, 0), (-0.707, -0.707), (0, -1), (0.707, -0.707))


def draw_house(pen: Pen) -> None:
    glass = shade(LAMP, 0.97) if pen.chance(0.25) else shade(GLASS, pen.between(0.6, 0.95))
    door = pen.rng.choice(ROOFS)
    if pen.aspect < 0.85:
        _tall_house(pen, glass, door)
    else:
        _cottage(pen, glass, door)


def _cottage(pen: Pen, glass: Color, door: Color) -> None:
    roof = pen.rng.choice(ROOFS)
    gable, chimney = pen.chance(0.5), pen.between(0.66, 0.78)
    pen.rect(chimney, 0.03, chimney + 0.08, 0.36, shade(roof, 0.7))
    pen.rect(0.06, 0.36, 0.94, 1, pen.base)
    if gable:
        pen.poly([(0, 0.42), (0.5, 0), (1, 0.42)], roof)
        pen.poly([(0.12, 0.44), (0.5, 0.12), (0.88, 0.44)], pen.base)
        pen.disc(0.5, 0.29, 0.06, glass)
    else:
        pen.poly([(0, 0.40), (0.16, 0.08), (0.84, 0.08), (1, 0.40)], roof)
        for y in (0.16, 0.24, 0.32):
            pen.line([(0.20 - y * 0.35, y), (0.80 + y * 0.35, y)], 0.012, shade(roof, 0.82))
    pen.rect(0.06, 0.94, 0.94, 1, pen.dark)
    pen.rect(0.42, 0.66, 0.58, 1, door)
    pen.disc(0.545, 0.84, 0.014, LAMP)
    for x in (0.15, 0.68):
        pen.rect(x - 0.02, 0.53, x + 0.19, 0.77, shade(pen.base, 1.7) if pen.base[1] < 200 else pen.dark)
        pen.rect(x, 0.55, x + 0.17, 0.75, glass)
        pen.line([(x + 0.085, 0.55), (x + 0.085, 0.75)], 0.012, pen.dark)
        pen.line([(x, 0.65), (x + 0.17, 0.65)], 0.012, pen.dark)


def _tall_house(pen: Pen, glass: Color, door: Color) -> None:
    floors, columns = 3 + pen.rng.randrange(2), 2 + pen.rng.randrange(2)
    shop = pen.chance(0.5)
    top = 0.10
    if pen.chance(0.5):
        pen.poly([(0.02, 0.14), (0.14, 0), (0.86, 0), (0.98, 0.14)], pen.rng.choice(ROOFS))
    else:
        pen.rect(0, 0.02, 1, 0.09, shade(pen.dark, 0.85))
    pen.rect(0.03, 0.08, 0.97, 1, pen.base)
    step = (0.72 - top) / floors
    for floor in range(floors):
        y = top + 0.04 + floor * step
        for column in range(columns):
            x = 0.03 + 0.94 * (column + 0.25) / columns
            pen.rect(x, y, x + 0.47 / columns, y + step * 0.62, glass)
            pen.rect(x - 0.02, y + step * 0.62, x + 0.47 / columns + 0.02, y + step * 0.70, pen.dark)
    pen.rect(0.03, 0.965, 0.97, 1, pen.dark)
    pen.rect(0.64, 0.80, 0.84, 1, door)
    pen.rect(0.12, 0.82, 0.54, 0.94, glass)
    if shop:
        for stripe in range(6):
            x = 0.06 + stripe * 0.147
            pen.rect(x, 0.745, x + 0.147, 0.80, (232, 228, 218) if stripe % 2 else (196, 92, 78))


def draw_tree(pen: Pen) -> None:
    if pen.aspect < 0.5:
        _poplar_or_fir(pen)
        return
    pen.poly([(0.44, 1), (0.46, 0.55), (0.54, 0.55), (0.57, 1)], BARK)
    pen.line([(0.5, 0.72), (0.32, 0.52)], 0.03, BARK)
    pen.line([(0.5, 0.68), (0.67, 0.50)], 0.03, BARK)
    if pen.chance(0.5):
        pen.oval(0, 0, 1, 0.72, pen.dark)
        pen.oval(0.01, 0, 0.90, 0.64, pen.base)
        pen.oval(0.16, 0.06, 0.56, 0.34, pen.light)
    else:
        lobes = [(0, 0.26, 0.54, 0.70), (0.46, 0.26, 1, 0.70), (0.18, 0, 0.82, 0.46), (0.2, 0.3, 0.8, 0.72)]
        for x1, y1, x2, y2 in lobes:
            pen.oval(x1, y1, x2, y2, pen.dark)
        for x1, y1, x2, y2 in lobes:
            pen.oval(x1 + 0.01, y1, x2 - 0.06, y2 - 0.07, pen.base)
        pen.oval(0.28, 0.06, 0.58, 0.26, pen.light)
    for _ in range(5):
        x, y = pen.between(0.2, 0.75), pen.between(0.2, 0.55)
        pen.disc(x, y, 0.025, pen.light if pen.chance(0.5) else pen.dark)


def _poplar_or_fir(pen: Pen) -> None:
    pen.rect(0.42, 0.80, 0.58, 1, BARK)
    if pen.chance(0.5):
        pen.oval(0, 0, 1, 0.90, pen.dark)
        pen.oval(0.02, 0, 0.86, 0.84, pen.base)
        pen.oval(0.20, 0.12, 0.50, 0.50, pen.light)
        return
    for top, bottom, half in ((0, 0.38, 0.30), (0.20, 0.62, 0.41), (0.42, 0.88, 0.5)):
        pen.poly([(0.5, top), (0.5 + half, bottom), (0.5 - half, bottom)], pen.dark)
        pen.poly([(0.5, top), (0.5 + half * 0.45, bottom - 0.02), (0.5 - half, bottom - 0.02)], pen.base)


def draw_traffic_light(pen: Pen) -> None:
    """The colour is the lamp's that is lit."""
    lit = min(("red", "yellow", "green"), key=lambda name: _distance(COLOURS[name], pen.base))
    bright = {"red": (255, 44, 40), "yellow": (255, 214, 44), "green": (56, 224, 96)}[lit]
    pen.rect(0.42, 0.40, 0.58, 1, IRON)
    pen.rect(0.24, 0.96, 0.76, 1, IRON)
    pen.round(0, 0, 1, 0.52, 0.05, (38, 40, 44))
    for name, y in (("red", 0.095), ("yellow", 0.26), ("green", 0.425)):
        pen.disc(0.5, y, 0.078, bright if name == lit else shade(COLOURS[name], 0.26))
        if name == lit:
            pen.disc(0.46, y - 0.02, 0.03, shade(bright, 1.5))


def _distance(one: Color, other: Color) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def draw_street_lamp(pen: Pen) -> None:
    if pen.aspect < 0.2:  # a lantern
        pen.rect(0.40, 0.18, 0.60, 1, pen.base)
        pen.rect(0.26, 0.90, 0.74, 1, pen.base)
        pen.rect(0.30, 0.40, 0.70, 0.43, pen.dark)
        pen.poly([(0.06, 0.05), (0.94, 0.05), (0.70, 0.20), (0.30, 0.20)], LAMP)
        pen.poly([(0, 0.06), (0.5, 0), (1, 0.06)], pen.base)
        pen.rect(0.28, 0.19, 0.72, 0.22, pen.base)
        return
    pen.rect(0.06, 0.05, 0.24, 1, pen.base)
    pen.rect(0, 0.93, 0.34, 1, pen.base)
    pen.line([(0.16, 0.07), (0.34, 0.02), (0.80, 0.02)], 0.035, pen.base)
    pen.round(0.52, 0, 1, 0.05, 0.02, pen.dark)
    pen.oval(0.58, 0.035, 0.96, 0.085, LAMP)


def draw_bench(pen: Pen) -> None:
    for x in (0.10, 0.82):
        pen.rect(x, 0.10, x + 0.06, 1, IRON)
    for y in (0, 0.20):
        pen.rect(0, y, 1, y + 0.15, pen.base)
    pen.rect(0, 0.12, 1, 0.15, pen.dark)
    pen.rect(0, 0.32, 1, 0.35, pen.dark)
    pen.poly([(0.03, 0.50), (0.97, 0.50), (1, 0.64), (0, 0.64)], pen.light)
    pen.rect(0, 0.62, 1, 0.72, pen.base)
    pen.rect(0, 0.69, 1, 0.72, pen.dark)


def draw_sun(pen: Pen) -> None:
    if pen.chance(0.6):
        for dx, dy in _ROUND:
            x, y = 0.5 + dx * 0.48, 0.5 + dy * 0.48
            pen.line([(0.5 + dx * 0.3, 0.5 + dy * 0.3), (x, y)], 0.06, pen.base)
        pen.disc(0.5, 0.5, 0.33, pen.base)
        pen.disc(0.5, 0.5, 0.25, pen.light)
    else:
        pen.disc(0.5, 0.5, 0.5, pen.base)
        pen.disc(0.47, 0.47, 0.40, pen.light)


def draw_cloud(pen: Pen) -> None:
    lobes = [(0, 0.42, 0.44, 1), (0.16, 0.12, 0.60, 0.90), (0.40, 0, 0.80, 0.85), (0.62, 0.36, 1, 1)]
    if pen.chance(0.5):
        lobes = [(0, 0.36, 0.36, 1), (0.20, 0, 0.66, 0.90), (0.54, 0.20, 1, 1)]
    shadow = shade(pen.base, 0.86)
    for x1, y1, x2, y2 in lobes:
        pen.oval(x1, y1, x2, y2, shadow)
    pen.rect(0.18, 0.60, 0.82, 1, shadow)
    for x1, y1, x2, y2 in lobes:
        pen.oval(x1, y1, x2, y2 - 0.14, pen.base)


def draw_bird(pen: Pen) -> None:
    wings_up = pen.chance(0.5)
    top = 0.40 if wings_up else 0.12
    pen.poly([(0, top), (0.24, top + 0.18), (0.03, top + 0.36)], pen.dark)
    if wings_up:
        pen.poly([(0.36, 0.56), (0.28, 0), (0.62, 0.52)], pen.dark)
    pen.oval(0.12, top, 0.80, top + 0.46, pen.base)
    if wings_up:
        pen.poly([(0.40, 0.62), (0.52, 0.04), (0.70, 0.58)], pen.base)
    else:
        pen.poly([(0.32, 0.40), (0.24, 1), (0.66, 0.42)], pen.dark)
    pen.disc(0.80, top + 0.14, 0.18, pen.base)
    pen.poly([(0.88, top + 0.06), (1, top + 0.15), (0.88, top + 0.24)], (240, 168, 40))
    pen.disc(0.83, top + 0.09, 0.05, TYRE)


def draw_balloon(pen: Pen) -> None:
    pen.line([(0.28, 0.60), (0.42, 0.86)], 0.02, BARK)
    pen.line([(0.72, 0.60), (0.58, 0.86)], 0.02, BARK)
    pen.oval(0, 0, 1, 0.70, pen.base)
    pen.poly([(0.06, 0.46), (0.94, 0.46), (0.62, 0.78), (0.38, 0.78)], pen.base)
    if pen.chance(0.7):
        pen.oval(0.30, 0, 0.70, 0.74, shade(pen.base, 1.35))
        pen.oval(0.42, 0.01, 0.58, 0.74, pen.base)
    else:
        pen.rect(0.02, 0.30, 0.98, 0.38, shade(pen.base, 1.4))
    pen.rect(0.38, 0.76, 0.62, 0.79, pen.dark)
    pen.rect(0.38, 0.85, 0.62, 1, (158, 116, 70))
    pen.rect(0.38, 0.85, 0.62, 0.88, STEEL)
