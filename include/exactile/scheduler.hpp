// exactile/scheduler.hpp - all that the author of a kernel or of a policy needs: the two concepts,
// the shipped policies, the writer of the tile list, the mask.
#pragma once

#include <exactile/mask.hpp>
#include <exactile/scheduler/concepts.hpp>
#include <exactile/scheduler/individual.hpp>
#include <exactile/scheduler/persistent.hpp>
#include <exactile/scheduler/tile_list.hpp>
#include <exactile/scheduler/valid_only.hpp>
