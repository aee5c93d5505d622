// A little of much of the C++ library: exceptions through frames with destructors, sorting, streams, containers, virtual
// calls. For tests that follow it instruction by instruction, so it is short.
//
// Argument: rounds.
#include "workload.h"

#include <algorithm>
#include <functional>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace varied {

struct Guard {
    explicit Guard(uint64_t &counter) : counter_(counter) { counter_++; }
    ~Guard() { counter_--; }
    uint64_t &counter_;
};

APART void thrower(int depth, uint64_t &counter) {
    Guard guard(counter);
    if (depth == 0) {
        throw std::runtime_error("thrown at " + std::to_string(counter));
    }
    thrower(depth - 1, counter);
    NO_TAIL_CALL();
}

APART uint64_t exceptions() {
    uint64_t counter = 0, length = 0;
    for (int depth = 1; depth < 6; depth += 2) {
        try {
            thrower(depth, counter);
        } catch (const std::logic_error &) {
            length += 1000;
        } catch (const std::exception &error) {
            length += std::string(error.what()).size();
        }
    }
    try {
        std::vector<int>().at(3);
    } catch (const std::out_of_range &) {
        length++;
    }
    return length + counter;
}

class Shape {
public:
    virtual ~Shape() = default;
    virtual double area() const = 0;
};
class Square : public Shape {
public:
    explicit Square(double side) : side_(side) {}
    double area() const override { return side_ * side_; }

private:
    double side_;
};
class Circle final : public Square {
public:
    using Square::Square;
    double area() const override { return Square::area() * 3.14159; }
};

APART double containers(int round) {
    std::vector<std::string> words;
    std::map<std::string, int> ordered;
    std::unordered_map<int, std::string> hashed;
    for (int i = 0; i < 40; i++) {
        words.push_back("word number " + std::to_string((i * 37 + round) % 100));
        ordered[words.back()] += i;
        hashed[i] = words.back();
    }
    std::sort(words.begin(), words.end());
    std::stable_sort(words.begin(), words.end(), std::greater<>());
    std::vector<std::unique_ptr<Shape>> shapes;
    for (int i = 0; i < 10; i++) {
        if (i % 2) {
            shapes.push_back(std::make_unique<Square>(i));
        } else {
            shapes.push_back(std::make_unique<Circle>(i));
        }
    }
    double sum = 0;
    std::function<double(const Shape &)> measure = [&](const Shape &shape) { return shape.area() + sum; };
    for (const auto &shape : shapes) {
        sum += measure(*shape) + (dynamic_cast<Circle *>(shape.get()) ? 1 : 0);
    }
    return sum + static_cast<double>(ordered.size() + hashed.size());
}

APART size_t streams(int round) {
    std::ostringstream out;
    out << std::setprecision(10) << std::fixed << round * 1.25 << ' ' << std::hex << round << ' ' << true << " text "
        << std::setw(12) << 3.5e10L;
    std::istringstream in("12 3.75 word 0x10");
    int number = 0;
    double real = 0;
    std::string word;
    in >> number >> real >> word;
    std::cout << out.str() << ' ' << number << ' ' << real << ' ' << word << std::endl;
    std::smatch match;
    const std::string text = "key=value";
    std::regex_match(text, match, std::regex("([a-z]+)=([a-z]+)"));
    return out.str().size() + match.size();
}

} // namespace varied

int main(int argc, char **argv) {
    const int rounds = argc > 1 ? atoi(argv[1]) : 1;
    volatile double sink = 0;
    say_ready();
    for (int round = 0; round < rounds; round++) {
        sink = sink + static_cast<double>(varied::exceptions()) + varied::containers(round);
        sink = sink + static_cast<double>(varied::streams(round));
    }
    printf("{\"rounds\": %d}\n", rounds);
}
