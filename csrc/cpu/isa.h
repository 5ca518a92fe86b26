// Which instruction set runs. csrc/cpu/isa/*.cpp are compiled once for each of them; plain code asks here and calls
// through a table of function pointers.
#pragma once

namespace ssl_fast {

enum class Isa { generic, avx2, avx512 };

Isa chosen_isa();

}  // namespace ssl_fast
