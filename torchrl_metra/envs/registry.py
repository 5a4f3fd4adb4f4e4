from types import SimpleNamespace as S


def registered_envs():
    return {
        n: S(summary=n, goals=None)
        for n in [
            "point",
            "windy_point",
            "point_pixels",
            "ant",
            "half_cheetah",
            "quadruped",
            "humanoid",
            "kitchen",
            "half_cheetah_goal",
            "point_goal",
        ]
    }


def register_env(): ...
