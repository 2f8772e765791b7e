"""What drives, rolls and floats: bus, car, truck, bicycle, boat. Each fills its pen's picture; most face right."""

from __future__ import annotations

from paddle_llava.demo.pen import COLOURS, GLASS, LAMP, STEEL, TAIL, TYRE, Pen, shade

WHITE = COLOURS["white"]


def draw_bus(pen: Pen) -> None:
    if pen.aspect < 1.1:
        _bus_from_the_front(pen)
    elif pen.aspect < 1.6:
        _double_decker(pen)
    else:
        _single_decker(pen)


def _single_decker(pen: Pen) -> None:
    pen.round(0, 0, 1, 0.88, 0.12, pen.base)
    pen.rect(0.02, 0, 0.97, 0.05, pen.light)
    glass = shade(GLASS, pen.between(0.75, 1.1))
    panes = 5 + pen.rng.randrange(3)
    door = pen.rng.randrange(1, panes - 1)
    step = 0.80 / panes
    for pane in range(panes):
        left = 0.03 + pane * step
        if pane == door:
            pen.rect(left, 0.16, left + step * 0.86, 0.84, pen.dark)
            pen.rect(left + step * 0.08, 0.20, left + step * 0.40, 0.78, glass)
            pen.rect(left + step * 0.48, 0.20, left + step * 0.78, 0.78, glass)
        else:
            pen.rect(left, 0.16, left + step * 0.86, 0.46, glass)
    pen.rect(0.85, 0.14, 1, 0.52, glass)
    stripe = pen.chance(0.7)
    if stripe:
        pen.rect(0, 0.56, 0.03 + door * step, 0.62, shade(pen.base, 1.6))
        pen.rect(0.03 + (door + 0.86) * step, 0.56, 1, 0.62, shade(pen.base, 1.6))
    pen.rect(0, 0.80, 1, 0.88, pen.dark)
    pen.rect(0.965, 0.68, 1, 0.77, LAMP)
    pen.rect(0, 0.66, 0.02, 0.77, TAIL)
    for x in (0.17, 0.80):
        pen.wheel(x, 0.86, 0.14)


def _double_decker(pen: Pen) -> None:
    pen.round(0, 0, 1, 0.92, 0.06, pen.base)
    glass = shade(GLASS, pen.between(0.75, 1.1))
    panes = 4 + pen.rng.randrange(2)
    step = 0.80 / panes
    for pane in range(panes):
        left = 0.04 + pane * step
        pen.rect(left, 0.09, left + step * 0.86, 0.30, glass)
        if pane:
            pen.rect(left, 0.48, left + step * 0.86, 0.68, glass)
    pen.rect(0.85, 0.07, 1, 0.32, glass)
    pen.rect(0.86, 0.46, 1, 0.74, glass)
    pen.rect(0.05, 0.48, 0.05 + step * 0.75, 0.88, pen.dark)
    pen.rect(0.07, 0.51, 0.02 + step * 0.75, 0.84, glass)
    pen.rect(0, 0.385, 1, 0.42, shade(pen.base, 1.55))
    pen.rect(0.87, 0.34, 0.99, 0.38, LAMP)
    pen.rect(0, 0.86, 1, 0.92, pen.dark)
    pen.rect(0.965, 0.77, 1, 0.83, LAMP)
    pen.rect(0, 0.74, 0.02, 0.82, TAIL)
    for x in (0.33, 0.80):
        pen.wheel(x, 0.90, 0.10)


def _bus_from_the_front(pen: Pen) -> None:
    for x in (0.10, 0.74):
        pen.rect(x, 0.88, x + 0.16, 1, TYRE)
    pen.round(0.04, 0, 0.96, 0.94, 0.10, pen.base)
    pen.rect(0, 0.24, 0.05, 0.42, TYRE)
    pen.rect(0.95, 0.24, 1, 0.42, TYRE)
    pen.rect(0.22, 0.05, 0.78, 0.13, LAMP)
    glass = shade(GLASS, pen.between(0.75, 1.1))
    pen.rect(0.10, 0.17, 0.485, 0.54, glass)
    pen.rect(0.515, 0.17, 0.90, 0.54, glass)
    pen.poly([(0.14, 0.52), (0.26, 0.19), (0.34, 0.19), (0.22, 0.52)], shade(glass, 1.5))
    pen.rect(0.04, 0.60, 0.96, 0.65, shade(pen.base, 1.6))
    pen.rect(0.30, 0.72, 0.70, 0.82, pen.dark)
    for x in (0.17, 0.83):
        pen.disc(x, 0.76, 0.055, LAMP)
    pen.rect(0.04, 0.87, 0.96, 0.94, pen.dark)


def draw_car(pen: Pen) -> None:
    if pen.aspect < 1.5:
        _car_from_the_front(pen)
        return
    glass = shade(GLASS, pen.between(0.7, 1.1))
    if pen.chance(0.5):
        roof = [(0.14, 0.50), (0.27, 0.06), (0.62, 0.06), (0.78, 0.50)]
        panes = [[(0.20, 0.46), (0.30, 0.14), (0.44, 0.14), (0.44, 0.46)]]
        panes += [[(0.48, 0.46), (0.48, 0.14), (0.60, 0.14), (0.71, 0.46)]]
    else:
        roof = [(0.02, 0.50), (0.08, 0.04), (0.60, 0.04), (0.77, 0.50)]
        panes = [[(0.08, 0.46), (0.12, 0.12), (0.28, 0.12), (0.28, 0.46)]]
        panes += [[(0.32, 0.46), (0.32, 0.12), (0.46, 0.12), (0.46, 0.46)]]
        panes += [[(0.50, 0.46), (0.50, 0.12), (0.58, 0.12), (0.70, 0.46)]]
    pen.poly(roof, pen.base)
    pen.round(0, 0.42, 1, 0.84, 0.14, pen.base)
    for pane in panes:
        pen.poly(pane, glass)
    pen.line([(0.46, 0.50), (0.46, 0.78)], 0.02, pen.dark)
    pen.rect(0.50, 0.56, 0.56, 0.60, pen.dark)
    pen.rect(0.01, 0.74, 0.99, 0.84, pen.dark)
    pen.oval(0.93, 0.52, 1, 0.66, LAMP)
    pen.rect(0, 0.54, 0.04, 0.66, TAIL)
    for x in (0.21, 0.79):
        pen.wheel(x, 0.80, 0.20)


def _car_from_the_front(pen: Pen) -> None:
    for x in (0.06, 0.78):
        pen.rect(x, 0.78, x + 0.16, 1, TYRE)
    pen.poly([(0.10, 0.46), (0.24, 0.04), (0.76, 0.04), (0.90, 0.46)], pen.base)
    pen.poly([(0.19, 0.44), (0.29, 0.11), (0.71, 0.11), (0.81, 0.44)], shade(GLASS, pen.between(0.7, 1.1)))
    pen.rect(0, 0.34, 0.12, 0.44, pen.dark)
    pen.rect(0.88, 0.34, 1, 0.44, pen.dark)
    pen.round(0.03, 0.42, 0.97, 0.90, 0.14, pen.base)
    pen.rect(0.30, 0.60, 0.70, 0.70, pen.dark)
    for x in (0.17, 0.83):
        pen.disc(x, 0.62, 0.09, LAMP)
    pen.rect(0.03, 0.78, 0.97, 0.86, pen.dark)
    pen.rect(0.39, 0.77, 0.61, 0.85, WHITE)


def draw_truck(pen: Pen) -> None:
    glass = shade(GLASS, pen.between(0.7, 1.1))
    pen.rect(0.02, 0.76, 0.98, 0.86, shade(STEEL, 0.5))
    pen.poly([(0.72, 0.82), (0.72, 0.16), (0.88, 0.16), (0.97, 0.46), (1, 0.50), (1, 0.82)], pen.base)
    pen.poly([(0.78, 0.46), (0.78, 0.24), (0.87, 0.24), (0.93, 0.46)], glass)
    pen.rect(0.96, 0.60, 1, 0.70, LAMP)
    pen.rect(0.94, 0.76, 1, 0.84, STEEL)
    load = pen.rng.randrange(3)
    if load == 0:
        pen.rect(0, 0, 0.69, 0.78, pen.base)
        pen.rect(0, 0, 0.69, 0.05, pen.light)
        for x in (0.16, 0.33, 0.50):
            pen.line([(x, 0.07), (x, 0.76)], 0.02, pen.dark)
    elif load == 1:
        pen.poly([(0, 0.28), (0.69, 0.28), (0.66, 0.78), (0.06, 0.78)], pen.base)
        pen.poly([(0.04, 0.28), (0.18, 0.10), (0.36, 0.04), (0.52, 0.12), (0.66, 0.28)], (148, 118, 84))
        pen.rect(0, 0.27, 0.69, 0.33, pen.dark)
        for x in (0.20, 0.36, 0.52):
            pen.line([(x, 0.34), (x, 0.74)], 0.025, pen.dark)
    else:
        pen.round(0, 0.10, 0.69, 0.74, 0.30, pen.base)
        pen.round(0.06, 0.17, 0.62, 0.27, 0.05, shade(pen.base, 1.45))
        pen.rect(0.30, 0.04, 0.40, 0.13, pen.dark)
        pen.rect(0.34, 0.12, 0.37, 0.73, pen.dark)
    pen.rect(0.70, 0.40, 0.72, 0.78, shade(STEEL, 0.5))
    for x in (0.13, 0.30, 0.84):
        pen.wheel(x, 0.85, 0.145)


def draw_bicycle(pen: Pen) -> None:
    rear, crank, front = (0.24, 0.68), (0.46, 0.70), (0.76, 0.68)
    saddle, head = (0.37, 0.26), (0.66, 0.26)
    for x, y in (rear, front):
        pen.ring(x, y, 0.315, 0.055, TYRE)
        pen.line([(x - 0.17, y), (x + 0.17, y)], 0.01, STEEL)
        pen.line([(x, y - 0.28), (x, y + 0.28)], 0.01, STEEL)
    if pen.chance(0.5):
        frame = [rear, (0.40, 0.34), (0.67, 0.34), crank, rear]
    else:
        frame = [rear, (0.40, 0.36), crank, (0.68, 0.38), (0.55, 0.48), crank, rear]
    pen.line(frame, 0.085, pen.base)
    pen.line([crank, saddle], 0.07, pen.base)
    pen.line([front, head, (0.65, 0.10)], 0.075, pen.base)
    pen.line([(0.57, 0.07), (0.72, 0.07), (0.76, 0.13)], 0.06, TYRE)
    pen.round(0.27, 0.20, 0.45, 0.28, 0.04, TYRE)
    pen.disc(*crank, 0.07, STEEL)
    if pen.chance(0.4):
        pen.rect(0.72, 0.14, 0.93, 0.34, (176, 138, 92))
        pen.rect(0.72, 0.20, 0.93, 0.23, (128, 96, 60))


def draw_boat(pen: Pen) -> None:
    funnel = pen.chance(0.5)
    if pen.aspect < 1.3:  # under sail
        pen.line([(0.46, 0), (0.46, 0.82)], 0.025, (104, 76, 52))
        pen.poly([(0.50, 0.03), (0.50, 0.70), (0.96, 0.70)], (236, 232, 220))
        pen.poly([(0.42, 0.12), (0.42, 0.70), (0.10, 0.70)], (214, 210, 200))
        pen.poly([(0, 0.76), (1, 0.76), (0.84, 1), (0.14, 1)], pen.base)
        pen.poly([(0, 0.76), (1, 0.76), (0.96, 0.82), (0.04, 0.82)], pen.light)
    elif funnel:  # with a cabin and a funnel
        pen.rect(0.46, 0, 0.56, 0.30, pen.dark)
        pen.rect(0.46, 0.06, 0.56, 0.13, WHITE)
        pen.round(0.26, 0.26, 0.74, 0.62, 0.05, (230, 226, 214))
        for x in (0.32, 0.46, 0.60):
            pen.rect(x, 0.34, x + 0.09, 0.48, shade(GLASS, 0.8))
        pen.poly([(0, 0.56), (1, 0.50), (0.86, 1), (0.10, 1)], pen.base)
        pen.poly([(0, 0.56), (1, 0.50), (0.98, 0.60), (0.02, 0.66)], pen.light)
    else:  # a motor boat
        pen.poly([(0.52, 0.40), (0.62, 0), (0.68, 0), (0.66, 0.40)], shade(GLASS, 0.9))
        pen.rect(0.20, 0.22, 0.44, 0.50, (230, 226, 214))
        pen.rect(0, 0.30, 0.09, 0.80, TYRE)
        pen.poly([(0.04, 0.40), (0.80, 0.40), (1, 0.28), (0.82, 1), (0.10, 1)], pen.base)
        pen.poly([(0.06, 0.60), (0.93, 0.60), (0.90, 0.72), (0.07, 0.72)], shade(pen.base, 1.5))
